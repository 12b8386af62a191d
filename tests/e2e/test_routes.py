"""Routing as a gateway does it: real HTTP requests to real instances, and the command line."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from bridge import Put, Resync, RouteTable
from bridge.bus.embedded_server import EmbeddedServer
from bridge.protocol import decode, encode
from tests.boxes import boxed, fetch, serving
from tests.e2e.program import run, running
from tests.integration.test_routes import registration
from tests.load import Load, get
from tests.support import ask, connect, eventually, service_table


async def test_scaling_under_load_fails_no_request_and_a_kill_only_those_of_the_victim(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    table_ = service_table("web", deregister_delay=1.0)
    async with (
        boxed(server, tmp_path, table_) as (gateway, recorder),
        connect(server.url) as own,
        RouteTable.open(own, "web") as table,
    ):
        await ask(gateway, "web", 2)
        await table.wait_ready("web", 2, timeout=30)
        async with Load.on(table) as load:
            await load.goes_on()
            # Up: the new ones are used, and no request fails.
            await ask(gateway, "web", 4)
            await table.wait_ready("web", 4, timeout=30)
            four = await serving(gateway, "web", 4)
            await load.reaches(*(info.id for info in four))
            # Down: two drain, and no request fails.
            await ask(gateway, "web", 2)
            left = {info.id for info in await serving(gateway, "web", 2)}
            for info in four:
                if info.id not in left:
                    await recorder.reached(info.id, "Stopped")
            await load.goes_on()
            assert (load.failed, load.unrouted) == ([], 0)
            assert {route.instance_id for route in table.endpoints("web")} == left
            assert load.gone.keys() == {info.id for info in four} - left
            # A kill: what was under way at the victim fails, and nothing once its route is gone.
            victim = next(info for info in four if info.id in left)
            os.kill((await fetch(victim))["pid"], signal.SIGKILL)
            await eventually(lambda: victim.id in load.gone, what="its route is gone")
            await table.wait_ready("web", 2, timeout=30)
            await load.reaches(*(route.instance_id for route in table.endpoints("web")))
            for route, picked in load.failed:
                assert route.instance_id == victim.id
                assert picked < load.gone[victim.id]
            assert load.unrouted == 0


async def test_a_route_is_gone_before_the_draining_instance_refuses_its_first_connection(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with (
        boxed(server, tmp_path, service_table("web", deregister_delay=1.0)) as (gateway, _),
        RouteTable.open(gateway, "web") as table,
    ):
        await ask(gateway, "web", 1)
        await table.wait_ready("web", 1, timeout=30)
        [route] = table.endpoints("web")
        await ask(gateway, "web", 0)
        routed_when_refused = None
        while routed_when_refused is None:
            try:
                await get(route.endpoint)
            except OSError:
                routed_when_refused = route in table.endpoints("web")
        assert routed_when_refused is False


# ── the command line ─────────────────────────────────────────────────────────────────────


async def test_routes_are_listed_and_watched(tmp_path: Path, server: EmbeddedServer) -> None:
    async with boxed(server, tmp_path, service_table("web", metadata={"zone": "a"})) as (
        gateway,
        _,
    ):
        none = await run("routes", "-s", server.url, cwd=tmp_path)
        assert (none.code, none.out, none.err) == (0, "", "no routes\n")
        async with (
            running("routes", "web", "--watch", "-s", server.url, cwd=tmp_path) as people,
            running("routes", "-w", "--json", "-s", server.url, cwd=tmp_path) as programs,
        ):
            await people.wait_for("no routes")
            await eventually(lambda: programs.out)
            assert json.loads(programs.out[0]) == {"change": "resync", "seq": 0, "routes": []}
            await ask(gateway, "web", 1)
            [info] = await serving(gateway, "web", 1)
            await people.wait_for(rf"\+ web  {info.id}  {info.endpoint}  ready  zone=a")
            listed = await run("routes", "web", "-s", server.url, cwd=tmp_path)
            assert listed.code == 0
            assert info.id in listed.out
            assert str(info.endpoint) in listed.out
            once = await run("routes", "--json", "-s", server.url, cwd=tmp_path)
            assert [route.endpoint for route in decode(Resync, once.out.encode()).routes] == [
                info.endpoint
            ]
            await ask(gateway, "web", 0)
            await people.wait_for(rf"- web  {info.id}  (it is draining|deregistered).*scaled down")
            await eventually(lambda: '"delete"' in programs.out[-1])
            put = decode(Put, programs.out[1].encode())
            assert (put.seq, put.route.instance_id) == (1, info.id)
            assert json.loads(programs.out[-1])["instance_id"] == info.id
            for watch in (people, programs):
                watch.process.send_signal(signal.SIGINT)
                assert await watch.wait() == 0


@pytest.mark.slow
async def test_routes_without_a_fleet_exits_with_3(tmp_path: Path, server: EmbeddedServer) -> None:
    result = await run("routes", "--json", "-s", server.url, cwd=tmp_path)
    assert (result.code, result.out) == (3, "")
    assert "no Box has run on NATS" in result.err


async def test_routes_of_an_invalid_name_is_wrong_usage(
    tmp_path: Path, server: EmbeddedServer
) -> None:
    result = await run("routes", "a.b", "-s", server.url, cwd=tmp_path)
    assert result.code == 2
    assert "is not a name" in result.err


async def test_routes_prints_the_text_of_peers_as_it_is(
    tmp_path: Path, server: EmbeddedServer
) -> None:
    async with boxed(server, tmp_path) as (gateway, _):
        result = registration("web-1", note="[red]bold[/red]")
        gateway.publish("box.register.web.web-1", encode(result))
        await gateway.flush()
        listed = await run("routes", "-s", server.url, cwd=tmp_path)
        assert "note=[red]bold[/red]" in listed.out
