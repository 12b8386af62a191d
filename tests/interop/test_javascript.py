"""A gateway and an instance in another language, by the wire contract alone."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bridge.bus.core.message import Message
from bridge.bus.embedded_server import EmbeddedServer
from bridge.protocol import (
    InstanceDeregistration,
    InstanceInfo,
    InstanceRegistration,
    InstanceState,
    decode,
)
from tests.boxes import boxed, fetch, instances, serving
from tests.paths import TESTS
from tests.support import Recorder, ask, eventually, service_table

JS = TESTS / "interop" / "js"


def why_not() -> str:
    """What is missing to run JavaScript; empty if nothing is."""
    if shutil.which("node") is None:
        return "node is not installed"
    if not (JS / "node_modules" / "@nats-io" / "transport-node").is_dir():
        return "the npm packages are not installed: npm ci --prefix tests/interop/js"
    return ""


pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "everything is there")


async def javascript(server: EmbeddedServer, service: str, replicas: int) -> list[dict[str, Any]]:
    """What the JavaScript gateway printed."""
    process = await asyncio.create_subprocess_exec(
        "node",
        str(JS / "gateway.mjs"),
        server.url,
        service,
        str(replicas),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode == 0, out.decode() + err.decode()
    return [json.loads(line) for line in out.splitlines()]


def only(told: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [line for line in told if line["kind"] == kind]


async def test_a_javascript_client_scales_a_service_and_reads_its_events(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path) as (gateway, recorder):
        told = await javascript(server, "web", 3)

        [refused] = only(told, "refused")
        assert refused["answer"]["accepted"] is False
        assert "unknown service" in refused["answer"]["error"]
        [expired] = only(told, "expired")
        assert "expired at" in expired["answer"]["error"]
        [answer], [again] = only(told, "answer"), only(told, "again")
        assert answer["answer"]["accepted"] is True
        assert answer["answer"]["target_replicas"] == again["answer"]["target_replicas"] == 3
        assert answer["answer"]["request_id"] == again["answer"]["request_id"]

        for info in await serving(gateway, "web", 3):
            mine = [each for each in only(told, "event") if each["event"]["instance_id"] == info.id]
            chain = {each["seq"]: each["event"]["to_state"] for each in mine}  # at least once each
            assert list(chain.items())[:2] == [(1, "Booting"), (2, "Ready")]
            assert list(chain) == list(range(1, len(chain) + 1)), "a slow machine makes notes"
        [instances] = only(told, "instances")
        assert instances["answer"]["total"] == 3
        assert set(instances["answer"]["hosts"].values()) == {"box-a"}
        assert [line["status"] for line in only(told, "page")] == [200, 200, 200]

        down = await javascript(server, "web", 1)
        draining = [
            info
            for info in only(down, "answer")[0]["answer"]["instances"]
            if info["state"] == "Draining"
        ]
        assert len(draining) == 2
        assert len(await serving(gateway, "web", 1)) == 1
        for info in draining:
            await recorder.reached(info["id"], "Stopped")


def told(recorder: Recorder, kind: str, instance_id: str) -> list[Message]:
    subject = f"box.{kind}.web.{instance_id}"
    return [message for message in recorder.messages if message.subject == subject]


async def test_a_javascript_instance_registers_itself_and_reports_its_load(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    table = service_table(
        "web",
        command=[shutil.which("node"), str(JS / "instance.mjs"), "{port}"],
        registration="self",
        metadata={"zone": "a"},
    )
    async with boxed(server, tmp_path, table) as (gateway, recorder):
        await ask(gateway, "web", 1)
        [info] = await serving(gateway, "web", 1)
        await eventually(lambda: len(told(recorder, "register", info.id)) >= 3)
        for message in told(recorder, "register", info.id):
            registration = decode(InstanceRegistration, message.data)
            assert registration.endpoint == info.endpoint
            assert registration.metadata == {"zone": "a", "runtime": "node"}
        await fetch(info, "/hold?7")

        async def busy() -> InstanceInfo | None:
            [now] = await instances(gateway, "web")
            return now if now.health.inflight_requests == 7 else None

        assert (await eventually(busy)).state is InstanceState.BUSY
        await fetch(info, "/hold?0")
        await ask(gateway, "web", 0)
        await recorder.reached(info.id, "Stopped")
        [gone] = told(recorder, "deregister", info.id)
        assert decode(InstanceDeregistration, gone.data).reason == "scaled down"
