"""The route table on a real server: complete, current, and not to be had by bad input."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge import Delete, NoRoute, Put, Resync, RouteTable, WaitTimeout
from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.api import jetstream
from bridge.bus.jetstream.publish import store
from bridge.errors import NameRefused
from bridge.gateway.routes.table import Changes
from bridge.protocol import (
    InstanceDeregistration,
    InstanceEvent,
    InstanceHealth,
    InstanceRegistration,
    InstanceState,
    encode,
    now,
)
from bridge.settings import Timing
from tests.boxes import boxed, serving
from tests.support import ask, connect, eventually

S = InstanceState
SHORT = Timing(registration_ttl=1)


@pytest.fixture
async def gateway(server: EmbeddedServer) -> AsyncIterator[Connection]:
    """A connection to a fleet whose streams are there."""
    async with connect(server.url) as connection:
        await topology.ensure(connection)
        yield connection


def registration(
    name: str, service: str = "web", port: int = 80, **metadata: str
) -> InstanceRegistration:
    return InstanceRegistration(
        instance_id=name,
        service=service,
        endpoint=f"127.0.0.1:{port}",
        metadata=metadata,
        started_at=now(),
    )


async def register(
    connection: Connection, *names: str, service: str = "web", port: int = 80, **metadata: str
) -> None:
    for name in names:
        told = registration(name, service, port, **metadata)
        await store(connection, f"box.register.{service}.{name}", encode(told))


async def deregister(connection: Connection, name: str, service: str = "web") -> None:
    gone = InstanceDeregistration(instance_id=name, service=service, reason="scaled down")
    await store(connection, f"box.deregister.{service}.{name}", encode(gone))


async def tell(
    connection: Connection, name: str, seq: int, state: InstanceState, message: str = ""
) -> None:
    since = state if message else S.READY
    event = InstanceEvent.transition(name, "web", since, state).with_message(message)
    await store(connection, "box.events.web", encode(event), headers={"Box-Seq": str(seq)})


def names(table: RouteTable, service: str = "web") -> list[str]:
    return sorted(route.instance_id for route in table.endpoints(service))


async def becomes(table: RouteTable, *wanted: str) -> None:
    await eventually(
        lambda: names(table) == list(wanted),
        what=f"the routes are {wanted}: {names(table)}",
    )


async def read(reader: Changes, count: int) -> list[Put | Delete | Resync]:
    async with asyncio.timeout(60):
        return [await anext(reader) for _ in range(count)]


# ── complete, and current ────────────────────────────────────────────────────────────────


async def test_a_table_is_complete_when_it_opens_and_misses_nothing_after(
    gateway: Connection,
) -> None:
    await register(gateway, "web-1", "web-2", "web-3", zone="a")
    await deregister(gateway, "web-2")
    async with RouteTable.open(gateway) as table:
        assert names(table) == ["web-1", "web-3"]
        assert table.stale_for() == 0.0
        [route, _] = sorted(table.endpoints("web"), key=lambda route: route.instance_id)
        assert (route.endpoint, route.metadata, route.state) == (
            "127.0.0.1:80",
            {"zone": "a"},
            S.READY,
        )
        await register(gateway, "web-4")
        await becomes(table, "web-1", "web-3", "web-4")


async def test_no_registration_falls_between_the_snapshot_and_what_comes_after(
    gateway: Connection,
) -> None:
    wanted = [f"web-{number:03}" for number in range(300)]
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(register(gateway, *wanted))
        while True:  # again and again amid the registrations
            async with RouteTable.open(gateway) as table:
                await gateway.flush()
                if len(table) == len(wanted):
                    break
                before = names(table)
                await eventually(lambda: len(table) > len(before))  # noqa: B023
                assert names(table) == wanted[: len(table)]


async def test_each_word_that_an_instance_goes_withdraws_it(gateway: Connection) -> None:
    await register(gateway, *(f"web-{number}" for number in range(6)))
    async with RouteTable.open(gateway) as table:
        assert len(table) == 6
        await deregister(gateway, "web-0")
        await tell(gateway, "web-1", 3, S.DRAINING)
        await tell(gateway, "web-2", 3, S.READY, "unhealthy: it does not answer")
        sick = InstanceHealth(healthy=False)
        gateway.publish("box.health.web.web-3", encode(sick))
        gateway.publish("box.stats.box-a", encode({"web-4": sick, "web-5": InstanceHealth()}))
        await becomes(table, "web-5")
        await register(gateway, "web-0", "web-1", "web-2", "web-3")
        gateway.publish("box.health.web.web-3", encode(InstanceHealth()))
        gateway.publish("box.stats.box-a", encode({"web-4": InstanceHealth()}))
        await becomes(table, "web-3", "web-4", "web-5")  # who is gone is gone; web-2 is still ill
        await tell(gateway, "web-2", 4, S.READY, "healthy: it answers")
        await becomes(table, "web-2", "web-3", "web-4", "web-5")


async def test_a_busy_instance_has_a_busy_route(gateway: Connection) -> None:
    await register(gateway, "web-1")
    async with RouteTable.open(gateway, "web") as table:
        await tell(gateway, "web-1", 3, S.BUSY)
        await eventually(lambda: [route.state for route in table] == [S.BUSY])


async def test_a_table_of_some_services_holds_those(gateway: Connection) -> None:
    for service in ("web", "api", "db"):
        await register(gateway, f"{service}-1", service=service)
    async with (
        RouteTable.open(gateway, "api") as one,
        RouteTable.open(gateway, ["web", "api"]) as two,
        RouteTable.open(gateway) as every,
    ):
        assert [route.service for route in one] == ["api"]
        assert sorted(route.service for route in two) == ["api", "web"]
        assert sorted(route.service for route in every) == ["api", "db", "web"]
        await register(gateway, "api-2", service="api")
        await register(gateway, "db-2", service="db")
        await deregister(gateway, "api-1", service="api")
        for table in (one, two, every):
            await eventually(lambda: names(table, "api") == ["api-2"])  # noqa: B023
        await eventually(lambda: names(every, "db") == ["db-1", "db-2"])
        assert one.endpoints("db") == two.endpoints("db") == ()
    with pytest.raises(NameRefused):
        async with RouteTable.open(gateway, "a.b"):
            pass


async def test_a_late_joiner_gets_ten_thousand_registrations_in_one_step(
    gateway: Connection,
) -> None:
    for number in range(10_000):
        told = registration(f"web-{number}", port=1 + number)
        gateway.publish(f"box.register.web.web-{number}", encode(told))
    await gateway.flush()

    async def stored() -> bool:
        state = (await jetstream(gateway).stream_info("BOX_REGISTRY")).state
        return bool(state.messages == 10_000)

    await eventually(stored)
    async with RouteTable.open(gateway) as table:
        assert len(table) == 10_000
        first = await anext(table.changes())
        assert isinstance(first, Resync)
        assert len(first.routes) == 10_000


async def test_a_table_opened_before_the_fleet_waits_for_it(server: EmbeddedServer) -> None:
    async with connect(server.url) as connection, connect(server.url) as box:

        async def opened() -> list[str]:
            async with RouteTable.open(connection) as table:
                await table.wait_ready("web", 1, timeout=10)
                return names(table)

        waiting = asyncio.ensure_future(opened())
        await topology.ensure(box)
        await register(box, "web-1")
        async with asyncio.timeout(60):
            assert await waiting == ["web-1"]


async def test_a_box_is_routed_to_from_ready_to_draining(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with (
        boxed(server, tmp_path) as (gateway, recorder),
        RouteTable.open(gateway, "web") as table,
    ):
        await ask(gateway, "web", 2)
        await table.wait_ready("web", 2, timeout=20)
        infos = await serving(gateway, "web", 2)
        assert {route.endpoint for route in table} == {info.endpoint for info in infos}
        assert {route.host for route in table} == {"box-a"}
        await ask(gateway, "web", 0)
        for info in infos:
            await recorder.reached(info.id, "Draining")
        await becomes(table)


# ── leases ───────────────────────────────────────────────────────────────────────────────


async def past(seconds: float) -> None:
    """Return when so much time has passed."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    await eventually(lambda: loop.time() > end)


async def test_a_snapshot_gives_nothing_that_is_older_than_a_lease(gateway: Connection) -> None:
    await register(gateway, "web-1")  # without a TTL, as a plain publisher does
    await past(1.1)
    await register(gateway, "web-2")
    async with RouteTable.open(gateway, timing=SHORT) as table:
        assert names(table) == ["web-2"]


async def test_a_lease_that_is_not_renewed_ends_and_a_renewal_brings_the_route_back(
    gateway: Connection,
) -> None:
    async with RouteTable.open(gateway, timing=SHORT) as table:
        reader = table.changes()
        assert await read(reader, 1) == [Resync(seq=0, routes=())]
        await register(gateway, "web-1")
        put, delete = await read(reader, 2)
        assert isinstance(put, Put)
        assert isinstance(delete, Delete)
        assert delete.reason == "its registration was not renewed"
        await register(gateway, "web-1")
        [back] = await read(reader, 1)
        assert isinstance(back, Put)
        assert back.route.key == put.route.key


@pytest.mark.slow
async def test_half_a_table_that_expires_at_once_is_kept_for_one_more_lease_and_reported(
    gateway: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    async with RouteTable.open(gateway, timing=SHORT) as table:
        await register(gateway, "web-1", "web-2", "web-3")
        await becomes(table, "web-1", "web-2", "web-3")
        await eventually(lambda: len(table.held_over) == 3)
        assert names(table) == ["web-1", "web-2", "web-3"]
        assert ("web", "web-1") in table.held_over
        await becomes(table)
        assert not table.held_over
    registry = gateway.metrics.registry
    kind = {"kind": "leases_held_over"}
    assert registry.get_sample_value("box_bridge_bus_events_total", kind)
    [record, *_] = [r for r in caplog.records if "kept for one more lease" in r.message]
    assert record.levelno == logging.WARNING


# ── outages ──────────────────────────────────────────────────────────────────────────────


async def test_an_outage_removes_no_route_and_the_table_reports_its_age(
    server: EmbeddedServer, gateway: Connection
) -> None:
    async with RouteTable.open(gateway, timing=SHORT) as table:
        await register(gateway, "web-1", "web-2")
        await becomes(table, "web-1", "web-2")
        await server.kill()
        await eventually(lambda: table.stale_for() > 1.2)  # more than a lease
        assert names(table) == ["web-1", "web-2"]
        mended = asyncio.get_running_loop().time()
        await server.start()  # without the registry, which lived in its memory
        await gateway.wait_connected()
        await topology.ensure(gateway)
        await eventually(lambda: table.stale_for() == 0.0)
        assert names(table) == ["web-1", "web-2"]  # absence withdraws nothing …
        await becomes(table)  # … but for the lease, that runs anew
        assert asyncio.get_running_loop().time() - mended > SHORT.registration_ttl


async def test_what_happened_during_an_outage_is_known_right_after(
    server: EmbeddedServer, gateway: Connection
) -> None:
    async with RouteTable.open(gateway) as table, connect(server.url) as box:
        await register(gateway, "web-1", "web-2", "web-3")
        await becomes(table, "web-1", "web-2", "web-3")
        await server.kill()
        await eventually(lambda: table.stale_for() > 0)
        await server.start()
        await box.wait_connected()
        await topology.ensure(box)
        await deregister(box, "web-1")
        await tell(box, "web-2", 3, S.DRAINING)
        await register(box, "web-2", "web-4")
        await register(box, "web-3", port=81)  # newer, though its sequence is lower now
        await becomes(table, "web-3", "web-4")
        await eventually(lambda: "127.0.0.1:81" in {route.endpoint for route in table})


@pytest.mark.slow
async def test_a_re_created_registry_withdraws_nothing(gateway: Connection) -> None:
    async with RouteTable.open(gateway) as table:
        await register(gateway, "web-1", "web-2")
        await becomes(table, "web-1", "web-2")
        await jetstream(gateway).delete_stream("BOX_REGISTRY")
        await eventually(lambda: table.stale_for() > 0)
        await topology.ensure(gateway)
        await register(gateway, "web-3")
        await becomes(table, "web-1", "web-2", "web-3")


# ── readers ──────────────────────────────────────────────────────────────────────────────


async def test_changes_come_in_order_and_numbered(gateway: Connection) -> None:
    await register(gateway, "web-1")
    async with RouteTable.open(gateway) as table:
        reader = table.changes()
        [first] = await read(reader, 1)
        assert isinstance(first, Resync)
        copy = {route.instance_id: route for route in first.routes}
        assert list(copy) == ["web-1"]
        await register(gateway, "web-2")
        await deregister(gateway, "web-1")
        await register(gateway, "web-2", port=81)
        for number, change in enumerate(await read(reader, 3), first.seq + 1):
            assert not isinstance(change, Resync)
            assert change.seq == number
            if isinstance(change, Put):
                copy[change.route.instance_id] = change.route
            else:
                assert change.reason == "deregistered: scaled down"
                del copy[change.instance_id]
        assert copy == {route.instance_id: route for route in table}
        assert [route.endpoint for route in table] == ["127.0.0.1:81"]
    with pytest.raises(StopAsyncIteration):
        await anext(reader)


async def test_a_slow_reader_gets_the_table_again_and_delays_no_other(gateway: Connection) -> None:
    async with RouteTable.open(gateway) as table:
        slow, quick = table.changes(backlog=5), table.changes()
        [empty] = await read(slow, 1)
        assert empty == Resync(seq=0, routes=())
        await read(quick, 1)
        await register(gateway, *(f"web-{number}" for number in range(8)))
        puts = await read(quick, 8)
        assert [change.seq for change in puts] == [1, 2, 3, 4, 5, 6, 7, 8]
        [anew] = await read(slow, 1)
        assert isinstance(anew, Resync)
        assert (anew.seq, len(anew.routes)) == (8, 8)
        await deregister(gateway, "web-0")
        [gone] = await read(slow, 1)
        assert isinstance(gone, Delete)
        assert (gone.seq, gone.instance_id) == (9, "web-0")
        assert await read(quick, 1) == [gone]


async def test_a_reader_that_is_dropped_is_forgotten(gateway: Connection) -> None:
    async with RouteTable.open(gateway) as table:
        async for change in table.changes():
            assert isinstance(change, Resync)
            break
        assert len(table._readers) == 0


# ── picking ──────────────────────────────────────────────────────────────────────────────


async def test_leases_in_flight_are_counted_and_the_idler_route_is_picked(
    gateway: Connection,
) -> None:
    await register(gateway, "web-1", "web-2")
    async with RouteTable.open(gateway) as table, table.lease("web") as first:
        assert table.inflight(first) == 1
        for _ in range(20):  # of two, both are always looked at
            async with table.lease("web") as second:
                assert second.instance_id != first.instance_id
            assert table.inflight(second) == 0
        with pytest.raises(RuntimeError, match="the request failed"):
            async with table.lease("web") as failed:
                raise RuntimeError("the request failed")
        assert table.inflight(failed) == 0
    assert table.inflight(first) == 0


async def test_a_pick_without_a_route_raises(gateway: Connection) -> None:
    async with RouteTable.open(gateway) as table:
        with pytest.raises(NoRoute) as told:
            table.pick("web")
        assert (told.value.service, told.value.stale_for) == ("web", 0.0)
        with pytest.raises(NoRoute):
            async with table.lease("web"):
                pass


async def test_waiting_for_routes(gateway: Connection) -> None:
    async with RouteTable.open(gateway) as table, asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(table.wait_ready("web", n, timeout=10)) for n in (1, 2)]
        await register(gateway, "web-1", "web-2")
        await asyncio.gather(*waiting)
        with pytest.raises(WaitTimeout) as late:
            await table.wait_ready("web", 3, timeout=0.05)
        assert (late.value.ready, late.value.wanted) == (2, 3)


# ── bad input ────────────────────────────────────────────────────────────────────────────


async def test_bad_input_is_counted_and_changes_nothing(gateway: Connection) -> None:
    async with RouteTable.open(gateway) as table:
        await register(gateway, "web-1")
        await becomes(table, "web-1")  # the stream keeps the last message of a subject alone
        other = encode(registration("web-2"))
        odd = InstanceRegistration(
            instance_id="web-3", service="web", endpoint="nowhere", metadata={}, started_at=now()
        )
        huge = registration("web-3", key="x" * 16 * 1024)
        event = encode(InstanceEvent.transition("web-1", "web", S.READY, S.DRAINING))
        ready = encode(InstanceEvent.transition("web-1", "web", S.BOOTING, S.READY))
        gone = encode(InstanceDeregistration(instance_id="web-1", service="web"))
        stored = [
            ("box.register.web.web-1", other, "registry: subject and payload disagree"),
            ("box.register.api.web-2", other, "registry: subject and payload disagree"),
            ("box.deregister.web.web-9", gone, "registry: subject and payload disagree"),
            ("box.register.web.web-3", encode(odd), "registry: endpoint"),
            ("box.register.web.web-3", encode(huge), "registry: metadata"),
            ("box.register.web.web-3", b"{", "registry: malformed"),
            ("box.register.web.web-3", b"\xff", "registry: malformed"),
            ("box.register.web.WEB", other, "registry: not a subject of the contract"),
            ("box.deregister.web.web-1", b"[]", "registry: malformed"),
            ("box.events.api", event, "events: subject and payload disagree"),
            ("box.events.web", event.replace(b"Draining", b"Dreaming"), "events: malformed"),
            ("box.events.web", event.replace(b"web-1", b"web.1"), "events: instance_id"),
            ("box.events.web", ready, "events: no Box-Seq"),
        ]
        for subject, data, _ in stored:
            await store(gateway, subject, data)
        told = [
            ("box.health.web.WEB", b"{}", "health: not a subject of the contract"),
            ("box.health.web.web-1", b"no", "health: malformed"),
            ("box.health.web.web-1", b"{" + b" " * 5000 + b"}", "health: too large"),
            ("box.stats.box-a", b"[]", "stats: malformed"),
            ("box.stats.box-a", b"{" + b" " * 1024 * 1024 + b"}", "stats: too large"),
        ]
        for subject, data, _ in told:
            if len(data) <= gateway.max_payload:
                gateway.publish(subject, data)
        await register(gateway, "web-4")
        await becomes(table, "web-1", "web-4")
        reasons = [reason for _, data, reason in stored + told if len(data) <= gateway.max_payload]
        wanted = {reason: reasons.count(reason) for reason in reasons}
        await eventually(lambda: gateway.metrics.refusals() == wanted)
        assert table.stale_for() == 0.0


async def test_a_replay_of_everything_changes_nothing(
    server: EmbeddedServer, gateway: Connection
) -> None:
    async with RouteTable.open(gateway) as table:
        await register(gateway, "web-1", "web-2", "web-3")
        await deregister(gateway, "web-2")
        await tell(gateway, "web-3", 4, S.BUSY)
        await eventually(lambda: S.BUSY in {route.state for route in table})
        await becomes(table, "web-1", "web-3")
        await tell(gateway, "web-3", 3, S.READY)  # an older event, late
        reader = table.changes()
        await read(reader, 1)
        await register(gateway, "web-2")
        await register(gateway, "web-4")
        [put] = await read(reader, 1)
        assert isinstance(put, Put)
        assert put.route.instance_id == "web-4"
        assert {route.instance_id: route.state for route in table}["web-3"] is S.BUSY
