"""A gateway in another language, by the wire contract alone."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bridge.bus.server import EmbeddedServer
from tests.boxes import boxed, serving
from tests.support import eventually

JS = Path(__file__).with_name("js")


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

        events = only(told, "event")
        assert len(events) == 6
        for info in await serving(gateway, "web", 3):
            chain = [line for line in events if line["event"]["instance_id"] == info.id]
            assert [line["seq"] for line in chain] == [1, 2]
            assert [line["event"]["to_state"] for line in chain] == ["Booting", "Ready"]
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
        await eventually(lambda: len(recorder.events) == 6 + 6)
