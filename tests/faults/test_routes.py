"""What a route table shows while servers, Boxes and instances die, and right after."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import nats.errors
import pytest

from bridge import RouteTable
from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream.api import jetstream
from bridge.errors import BridgeError
from bridge.settings import Timing
from tests.boxes import fetch, instances, labelled, serving
from tests.faults.killable import Killable, killable, scaled
from tests.faults.scene import Scene
from tests.load import Load
from tests.support import connect, eventually, service_table

pytestmark = pytest.mark.slow

WITHIN = 20.0  # seconds after the end of any fault; the promise is 5 on a quiet machine
WEB = service_table("web", deregister_delay=1.0)


async def registered(gateway: Connection) -> set[str]:
    """The instances that are registered and not deregistered, as the registry itself has them."""
    found: dict[str, set[str]] = {}
    for kind in ("register", "deregister"):
        info = await jetstream(gateway).stream_info(
            "BOX_REGISTRY", subjects_filter=f"box.{kind}.web.*"
        )
        found[kind] = {subject.rpartition(".")[2] for subject in info.state.subjects or {}}
    return found["register"] - found["deregister"]


def routed(table: RouteTable) -> set[str]:
    return {route.instance_id for route in table.endpoints("web")}


async def equal(table: RouteTable, gateway: Connection, count: int) -> None:
    """Return when table, registry and fleet agree on so many instances, within 5 s."""

    async def agree() -> bool:
        with contextlib.suppress(BridgeError, nats.errors.Error):
            kept = await registered(gateway)
            fleet = {info.id for info in await instances(gateway, "web")}
            return len(kept) == count and routed(table) == kept == fleet
        return False

    await eventually(agree, within=WITHIN, what=f"{count} routes: {routed(table)}")
    assert table.stale_for() == 0.0


async def test_a_killed_server_removes_no_route_and_the_table_is_right_soon_after(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with (
        Scene.of(server, tmp_path) as scene,
        connect(server.url) as own,
        RouteTable.open(own, "web") as table,
    ):
        infos = await scene.scale(3)
        await table.wait_ready("web", 3, timeout=10)
        async with Load.on(table) as load:
            await load.goes_on()
            await server.kill()  # the registry goes with its memory
            await eventually(lambda: table.stale_for() > 0)
            await load.goes_on()
            assert (load.failed, load.unrouted) == ([], 0)
            assert routed(table) == {info.id for info in infos}
            victim = infos[0]
            os.kill((await fetch(victim))["pid"], signal.SIGKILL)
            await load.goes_on()
            assert load.unrouted == 0
            await server.start()
            await scene.gateway.wait_connected()
            await equal(table, scene.gateway, 3)
            assert victim.id not in routed(table)
            assert {route.instance_id for route, _ in load.failed} <= {victim.id}


async def test_a_killed_box_removes_no_route_and_its_restart_corrects_the_table(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with killable(server, tmp_path, WEB) as (gateway, box):
        await scaled(gateway, 3)
        infos = await serving(gateway, "web", 3)
        async with RouteTable.open(gateway, "web") as table, Load.on(table) as load:
            await table.wait_ready("web", 3, timeout=10)
            await load.goes_on()
            await box.kill()
            await load.goes_on()
            assert (load.failed, load.unrouted) == ([], 0)
            assert routed(table) == {info.id for info in infos}
            [*_, victim] = infos
            for pid in labelled(str(box.instances / victim.id)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            again = Killable(tmp_path, "bridge.cli", "box", "-c", str(tmp_path / "box-a.toml"))
            try:
                await scaled(gateway, 3)  # it decides again: the fault is over
                await eventually(lambda: victim.id not in routed(table), within=WITHIN)
                await serving(gateway, "web", 3)
                await equal(table, gateway, 3)
                assert {route.instance_id for route, _ in load.failed} <= {victim.id}
                assert load.unrouted == 0
            finally:
                again.process.kill()
                again.process.wait()


async def test_a_frozen_server_removes_no_route_and_the_table_reports_its_age(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with (
        Scene.of(server, tmp_path) as scene,
        RouteTable.open(scene.gateway, "web") as table,
    ):
        infos = await scene.scale(3)
        await table.wait_ready("web", 3, timeout=10)
        server.pause()
        await eventually(lambda: table.stale_for() > 4)
        assert routed(table) == {info.id for info in infos}
        server.resume()
        await eventually(lambda: table.stale_for() == 0.0)
        await scene.gateway.wait_connected()
        await equal(table, scene.gateway, 3)
        assert routed(table) == {info.id for info in infos}


async def test_the_routes_of_a_lost_box_expire_with_their_leases(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with (
        killable(server, tmp_path) as (gateway, box),
        RouteTable.open(gateway, "web", timing=Timing(registration_ttl=3)) as table,
    ):
        await scaled(gateway, 2)
        await table.wait_ready("web", 2, timeout=10)
        await box.kill()
        assert table.stale_for() == 0.0
        await eventually(lambda: not routed(table))


async def test_the_routes_of_most_of_a_fleet_are_kept_for_one_more_lease(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with (
        killable(server, tmp_path) as (gateway, box),
        RouteTable.open(gateway, "web", timing=Timing(registration_ttl=3)) as table,
    ):
        await scaled(gateway, 4)
        await table.wait_ready("web", 4, timeout=10)
        await box.kill()
        await eventually(lambda: len(table.held_over) == 4)
        assert len(routed(table)) == 4
        await eventually(lambda: not routed(table))
