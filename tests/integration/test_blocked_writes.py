"""While events, records or registrations cannot be written: gateways stay right all the same."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from bridge import RouteTable, ScaleClient
from bridge.box.daemon import Box
from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream.api import jetstream
from bridge.gateway.errors import WaitTimeout
from bridge.protocol import InstanceDeregistration, encode
from tests.boxes import fetch, instances, serving
from tests.failing_sqlite import FULL, FailingSqlite
from tests.integration.test_alerts import alerts_of
from tests.paths import HTTP_SERVICE, REPOSITORY, SELF_REGISTERED
from tests.support import Recorder, box_config, connect, eventually, service_table


@asynccontextmanager
async def full(gateway: Connection, name: str) -> AsyncIterator[None]:
    """The stream takes nothing inside the block."""
    js = jetstream(gateway)
    stream = (await js.stream_info(name)).config
    await js.update_stream(stream, max_bytes=1)
    yield
    await js.update_stream(stream)


async def routed(table: RouteTable, count: int) -> set[str]:
    """The ids of the instances that are routed, once exactly so many are."""
    await eventually(lambda: len(table.endpoints("web")) == count, what=f"{count} routes")
    return {route.instance_id for route in table.endpoints("web")}


@pytest.mark.slow
async def test_while_events_wait_gateways_learn_of_every_start_and_end(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with (
        connect(server.url) as gateway,
        Box.running(box_config(tmp_path, server.url)) as box,
        RouteTable.open(gateway, "web") as table,
    ):
        client = ScaleClient(gateway)
        await client.scale("web", 2, wait=True)
        first = await routed(table, 2)
        backlog = box.metrics.registry.get_sample_value
        async with full(gateway, "BOX_EVENTS"):
            await client.scale("web", 1, wait=True)
            kept = await routed(table, 1)
            assert kept < first
            await client.scale("web", 3, wait=True)  # the order of publishing is kept for 1.5 s
            assert kept < await routed(table, 3)
            [killed, *_] = await serving(gateway, "web", 3)
            os.kill((await fetch(killed))["pid"], signal.SIGKILL)
            await eventually(
                lambda: killed.id not in {route.instance_id for route in table.endpoints("web")},
                what="the killed instance is withdrawn",
            )
            await routed(table, 3)  # and its replacement is announced
            assert (backlog("box_bridge_backlog_events") or 0) > 0
        await eventually(lambda: backlog("box_bridge_backlog_events") == 0)
        assert len(await routed(table, 3)) == 3


def waits_for(door: Path, registration: str) -> str:
    """A service `web` whose instances boot until there is a `door`."""
    program = SELF_REGISTERED if registration == "self" else f"-S -E {HTTP_SERVICE}"
    script = f"until test -e {door}; do sleep 0.02; done; exec {sys.executable} {program} $PORT"
    return service_table(
        "web",
        command=["sh", "-c", script],
        registration=registration,
        probe={"tcp": True},
        env={"PYTHONPATH": str(REPOSITORY)},
    )


@pytest.mark.slow
@pytest.mark.parametrize("registration", ["box", "self"])
async def test_an_instance_becomes_ready_while_events_wait_and_a_gateway_that_saw_it_boot_routes(
    server: EmbeddedServer, tmp_path: Path, registration: str
) -> None:
    config = box_config(tmp_path, server.url, waits_for(tmp_path / "door", registration))
    async with (
        connect(server.url) as gateway,
        Box.running(config),
        RouteTable.open(gateway, "web") as table,
    ):
        recorder = await Recorder.listening(gateway)
        await ScaleClient(gateway).scale("web", 1)
        [info] = await eventually(lambda: instances(gateway, "web"), what="an instance")
        await recorder.reached(info.id, "Booting")
        async with full(gateway, "BOX_EVENTS"):
            (tmp_path / "door").touch()
            assert await routed(table, 1) == {info.id}
            async with RouteTable.open(gateway, "web") as late:
                assert await routed(late, 1) == {info.id}
        await recorder.reached(info.id, "Ready")
        assert await routed(table, 1) == {info.id}


@pytest.mark.slow
async def test_a_wait_for_instances_that_cannot_be_registered_gives_the_reason(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    config = box_config(tmp_path, server.url)
    async with connect(server.url) as gateway, Box.running(config) as box:
        client = ScaleClient(gateway)
        async with full(gateway, "BOX_REGISTRY"):
            with pytest.raises(WaitTimeout) as late:
                await client.scale("web", 1, wait=True, timeout=6.0)
            assert "gateways do not route to" in str(late.value)
            alert = await eventually(lambda: alerts_of(gateway), what="an alert")
            assert "1 registration is not stored: JetStream refused" in alert
            retries = box.metrics.registry.get_sample_value
            assert retries("box_bridge_bus_events_total", {"kind": "registration_retry"})
        await client.wait_ready("web", 1)


@pytest.mark.slow
async def test_a_wait_for_an_instance_that_never_registers_itself_gives_that_reason(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    config = box_config(tmp_path, server.url, service_table("web", registration="self"))
    async with connect(server.url) as gateway, Box.running(config):
        with pytest.raises(WaitTimeout) as late:
            await ScaleClient(gateway).scale("web", 1, wait=True, timeout=4.0)
        assert 'with registration = "self" the instance itself' in str(late.value)


@pytest.mark.slow
async def test_while_events_wait_an_instance_that_an_operator_withdraws_is_replaced(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with (
        connect(server.url) as gateway,
        Box.running(box_config(tmp_path, server.url)),
        RouteTable.open(gateway, "web") as table,
    ):
        await ScaleClient(gateway).scale("web", 1, wait=True)
        [first] = await routed(table, 1)
        async with full(gateway, "BOX_EVENTS"):
            withdrawal = InstanceDeregistration(instance_id=first, service="web", reason="by hand")
            gateway.publish(gateway.subjects.deregister("web", first), encode(withdrawal))
            await eventually(lambda: not table.endpoints("web"), what="it is withdrawn")
            [second] = await routed(table, 1)
            assert second != first
            await eventually(lambda: serving(gateway, "web", 1), what="the first one has ended")


@pytest.mark.slow
async def test_while_events_wait_a_slot_that_another_host_takes_is_given_up(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with (
        connect(server.url) as gateway,
        Box.running(box_config(tmp_path, server.url)) as box,
        RouteTable.open(gateway, "web") as table,
    ):
        await ScaleClient(gateway).scale("web", 1, wait=True)
        [first] = await routed(table, 1)
        assert box._components is not None
        slots = box._components.fleet.view.slots
        [(key, record)] = slots.items()
        claim = record.value
        other = replace(claim, host="box-z", host_id="z" * 8, info=replace(claim.info, id="web-z"))
        async with full(gateway, "BOX_EVENTS"):
            await slots.put(key, other)
            await eventually(lambda: table.endpoints("web") == (), what="it is withdrawn")
            # The other host never shows up: its claim ends, and the slot is taken over.
            assert first not in await routed(table, 1)


@pytest.mark.slow
async def test_an_instance_leaves_its_host_while_the_disk_is_full(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sqlite = FailingSqlite.install(monkeypatch)
    async with (
        connect(server.url) as gateway,
        Box.running(box_config(tmp_path, server.url)),
        RouteTable.open(gateway, "web") as table,
    ):
        client = ScaleClient(gateway)
        await client.scale("web", 2, wait=True)
        first, second = await serving(gateway, "web", 2)
        sqlite.fault = FULL
        os.kill((await fetch(first))["pid"], signal.SIGKILL)
        assert await routed(table, 1) == {second.id}
        sqlite.fault = None
        await routed(table, 2)
