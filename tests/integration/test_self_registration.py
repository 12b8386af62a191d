"""Instances that speak for themselves, and a Box that listens: who registers, whose word counts."""

from __future__ import annotations

import json
import os
import signal
import sys
import urllib.parse
from pathlib import Path
from typing import Any

import pytest

from bridge.box.daemon import Box
from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.embedded_server import EmbeddedServer
from bridge.protocol import (
    InstanceDeregistration,
    InstanceHealth,
    InstanceInfo,
    InstanceRegistration,
    InstanceState,
    decode,
    encode,
)
from tests.boxes import boxed, fetch, instances, serving
from tests.paths import REPOSITORY, SELF_REGISTERED
from tests.support import Recorder, ask, box_config, connect, eventually, service_table

S = InstanceState

SELF = service_table(
    "web",
    command=[sys.executable, str(SELF_REGISTERED), "{port}"],
    registration="self",
    probe={"tcp": True},
    env={"PYTHONPATH": str(REPOSITORY)},
    metadata={"zone": "a", "version": "0"},
    drain_timeout=0.2,
)


def told(recorder: Recorder, kind: str, instance_id: str) -> list[Message]:
    subject = f"box.{kind}.web.{instance_id}"
    return [message for message in recorder.messages if message.subject == subject]


async def scaled(gateway: Connection) -> InstanceInfo:
    """The one instance of `web`, once it serves."""
    await ask(gateway, "web", 1)
    [info] = await serving(gateway, "web", 1)
    return info


async def say(gateway: Connection, info: InstanceInfo, **health: Any) -> None:
    """Have the instance report; it goes on repeating it."""
    await fetch(info, f"/say?{urllib.parse.quote(json.dumps(health))}")


async def becomes(gateway: Connection, **wanted: Any) -> InstanceInfo:
    """The one instance, once its info or its health says so."""

    async def said() -> InstanceInfo | None:
        for info in await instances(gateway, "web"):
            if all(getattr(info, k, getattr(info.health, k, None)) == v for k, v in wanted.items()):
                return info
        return None

    return await eventually(said, what=f"{wanted}")


# ── who registers ────────────────────────────────────────────────────────────────────────


async def test_it_registers_itself_with_what_its_box_hands_it_and_is_withdrawn_by_the_box(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path, SELF) as (gateway, recorder):
        info = await scaled(gateway)
        await eventually(lambda: len(told(recorder, "register", info.id)) >= 3)
        for message in told(recorder, "register", info.id):
            registration = decode(InstanceRegistration, message.data)
            assert registration.endpoint == info.endpoint
            assert registration.metadata == {"zone": "a", "version": "7"}  # its own word wins
            assert message.headers["Nats-TTL"] == "1"  # the program's; the Box's would be 30
            assert message.headers["Box-Host"] == "box-a"
        await ask(gateway, "web", 0)
        await recorder.reached(info.id, "Stopped")
        [gone] = told(recorder, "deregister", info.id)
        assert decode(InstanceDeregistration, gone.data).reason == "scaled down"
        after = recorder.messages[recorder.messages.index(gone) :]
        assert not [message for message in after if ".register." in message.subject]


async def test_an_instance_that_exited_is_withdrawn_at_once(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path, SELF) as (gateway, recorder):
        info = await scaled(gateway)
        await eventually(lambda: told(recorder, "register", info.id))
        os.kill((await fetch(info))["pid"], signal.SIGKILL)
        [gone] = await eventually(lambda: told(recorder, "deregister", info.id))
        assert "killed by signal 9" in decode(InstanceDeregistration, gone.data).reason


async def test_an_instance_that_was_never_ready_is_withdrawn_too(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    never = service_table("web", "never-listen", registration="self")
    async with boxed(server, tmp_path, never) as (gateway, recorder):
        await ask(gateway, "web", 1)
        [info] = await eventually(lambda: instances(gateway, "web"))
        await recorder.reached(info.id, "Booting")
        await ask(gateway, "web", 0)
        states = await recorder.reached(info.id, "Stopped")
        assert states[-3:] == ["Booting", "Stopping", "Stopped"]
        assert recorder.of(info.id)[-2].message == "scaled down"
        await eventually(lambda: told(recorder, "deregister", info.id))
        assert not told(recorder, "register", info.id)


async def test_it_stays_registered_while_its_box_is_away_and_is_withdrawn_by_the_next_one(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    config = box_config(tmp_path, server.url, SELF, on_exit="leave")
    async with connect(server.url) as gateway:
        recorder = await Recorder.listening(gateway)
        async with Box.running(config):
            info = await scaled(gateway)
            await eventually(lambda: told(recorder, "register", info.id))
        before = len(told(recorder, "register", info.id))
        await eventually(lambda: len(told(recorder, "register", info.id)) >= before + 2)
        assert not told(recorder, "deregister", info.id)
        async with Box.running(config):
            assert (await scaled(gateway)).id == info.id
            await ask(gateway, "web", 0)
            [gone] = await eventually(lambda: told(recorder, "deregister", info.id))
            assert decode(InstanceDeregistration, gone.data).reason == "scaled down"
            await recorder.reached(info.id, "Stopped")
        recorder.check_chains()


@pytest.mark.slow
async def test_the_same_program_only_reports_where_its_box_registers_it(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    table = SELF.replace('registration = "self"', 'registration = "box"')
    async with boxed(server, tmp_path, table) as (gateway, recorder):
        info = await scaled(gateway)
        await say(gateway, info, inflight=3)
        await becomes(gateway, inflight_requests=3)
        for message in told(recorder, "register", info.id):
            registration = decode(InstanceRegistration, message.data)
            assert registration.metadata == {"zone": "a", "version": "0"}
            assert message.headers["Nats-TTL"] == "30"


async def test_instances_get_the_address_of_nats_without_the_box_s_credentials(
    tmp_path: Path,
) -> None:
    file = tmp_path / "nats.conf"
    file.write_text("authorization { user: box, password: secret }")
    async with EmbeddedServer(tmp_path / "nats", config=file) as server:
        url = server.url.replace("nats://", "nats://box:secret@")
        config = box_config(tmp_path, url, service_table("web"))
        async with Box.running(config), connect(url) as gateway:
            env = await fetch(await scaled(gateway), "/env")
        assert env["NATS_URL"] == server.url
        assert (env["BOX_ADDRESS"], env["BOX_HOST"]) == ("127.0.0.1", "box-a")
        assert (env["BOX_REGISTRATION"], env["BOX_SERVICE"]) == ("box", "web")
        assert "secret" not in "".join(env.values())
        assert "BOX_METADATA" not in env


# ── whose word counts ────────────────────────────────────────────────────────────────────


async def test_reported_requests_make_an_instance_busy_and_ready(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path, SELF) as (gateway, recorder):
        info = await scaled(gateway)
        await say(gateway, info, inflight=5, cpu_percent=77.0, memory_bytes=12345)
        busy = await becomes(gateway, state=S.BUSY, inflight_requests=5)
        assert busy.health == InstanceHealth(
            cpu_percent=77.0, memory_bytes=12345, inflight_requests=5
        )
        await recorder.reached(info.id, "Busy")
        await say(gateway, info, inflight=0)
        assert (await recorder.reached(info.id, "Ready"))[-3:] == ["Ready", "Busy", "Ready"]


@pytest.mark.slow
async def test_cpu_and_memory_that_it_does_not_report_are_measured(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path, SELF) as (gateway, _):
        info = await scaled(gateway)
        await say(gateway, info, inflight=1)
        health = (await becomes(gateway, state=S.BUSY)).health
        assert health.memory_bytes is not None
        assert health.memory_bytes > 1 << 20


async def test_scaling_down_ends_the_instances_that_report_the_least_load(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path, SELF) as (gateway, _):
        await ask(gateway, "web", 3)
        found = await serving(gateway, "web", 3)
        for number, info in enumerate(found):
            await say(gateway, info, inflight=(2, 0, 1)[number])

        async def sampled() -> bool:
            loads = [info.health.inflight_requests for info in await instances(gateway, "web")]
            return loads == [2, 0, 1]

        await eventually(sampled)
        answer = await ask(gateway, "web", 2)
        [victim] = [info.id for info in answer.instances if info.state is S.DRAINING]
        assert victim == found[1].id


@pytest.mark.slow
async def test_a_fresh_report_of_health_takes_precedence_over_the_probe(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    table = service_table("web", probe={"http": "/", "interval": 0.05, "failures": 1})
    async with boxed(server, tmp_path, table) as (gateway, recorder):
        info = await scaled(gateway)
        subject = f"box.health.web.{info.id}"

        def notes() -> list[str]:
            return [e.message for e in recorder.of(info.id) if e.from_state is e.to_state]

        gateway.publish(subject, encode(InstanceHealth(healthy=False)))
        await eventually(lambda: len(notes()) >= 2)  # said once, it is old in a second
        assert notes() == ["unhealthy: the instance reports it", "healthy: the probe passes"]
        await fetch(info, "/break")
        await eventually(lambda: notes()[2:] == ["unhealthy: HTTP 500 on /"])
        gateway.publish(subject, encode(InstanceHealth(healthy=True)))
        await eventually(lambda: notes()[3:4] == ["healthy: the instance reports it"])


@pytest.mark.slow
async def test_a_drain_waits_for_the_requests_that_the_instance_reports(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    patient = SELF.replace("drain_timeout = 0.2", "drain_timeout = 30")
    async with boxed(server, tmp_path, patient) as (gateway, recorder):
        info = await scaled(gateway)
        await say(gateway, info, inflight=1)  # no connection shows it
        await becomes(gateway, state=S.BUSY)
        await ask(gateway, "web", 0)
        await eventually(lambda: told(recorder, "deregister", info.id))
        heard: list[Message] = []
        await gateway.listen(f"box.health.web.{info.id}", heard.append)
        await eventually(lambda: len(heard) >= 3)  # it is left alone meanwhile
        assert recorder.states(info.id)[-1] == "Draining"
        await say(gateway, info, inflight=0)
        await recorder.reached(info.id, "Stopped")
        assert not [e for e in recorder.of(info.id) if "still in flight" in e.message]


BAD = {
    "unknown instance": ("web.web-nobody", encode(InstanceHealth())),
    "another service's instance": ("api.{id}", encode(InstanceHealth())),
    "too large": ("web.{id}", b" " * 1025 + encode(InstanceHealth())),
}
MALFORMED = [
    b"",
    b"[]",
    b"\xff",
    b'{"inflight_requests":-1}',
    b'{"inflight_requests":4294967296}',
    b'{"healthy":null}',
    b'{"cpu_percent":-1}',
    b'{"cpu_percent":1e40}',
    b'{"memory_bytes":1e3}',
]


@pytest.mark.slow
async def test_bad_reports_are_refused_and_counted_and_good_ones_taken_after_them(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    config = box_config(tmp_path, server.url, SELF)
    async with connect(server.url) as gateway, Box.running(config) as box:
        info = await scaled(gateway)
        for subject, data in BAD.values():
            gateway.publish(f"box.health.{subject.format(id=info.id)}", data)
        for data in MALFORMED:
            gateway.publish(f"box.health.web.{info.id}", data)
        wanted = {f"health: {reason}": 1 for reason in BAD} | {"health: malformed": len(MALFORMED)}
        await eventually(lambda: box.metrics.refusals() == wanted, what=f"{wanted}")
        assert (await becomes(gateway, state=S.READY)).health.inflight_requests == 0
        await say(gateway, info, inflight=2)
        await becomes(gateway, inflight_requests=2)
