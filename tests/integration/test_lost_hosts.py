"""When a host counts as dead: its lease has expired here, and the store has removed it too."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest

from bridge.box.fleet.view import FleetView
from bridge.box.state.records import HostRecord, SlotRecord
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.kv_view import Record
from bridge.bus.jetstream.publish import store
from bridge.protocol import InstanceInfo, InstanceState
from bridge.tasks import task_scope
from tests.support import connect, eventually

LEASE = 10.0
HOST = HostRecord(host_id="old", runtime="process", cpus=2, max_instances=5, services={})
CLAIM = SlotRecord(
    host="box-a",
    host_id="old",
    config="",
    seq=1,
    info=InstanceInfo(
        id="web-1",
        state=InstanceState.READY,
        service="web",
        created_at=datetime(2026, 11, 21, tzinfo=UTC),
    ),
)


class Watch:
    """A fleet whose leases run by a clock that the test sets, over real buckets."""

    def __init__(self, fleet: FleetView) -> None:
        self.fleet = fleet
        self.now = 0.0

    def advance(self, seconds: float) -> None:
        """Advance the clock in ticks of half a second."""
        until = self.now + seconds
        while self.now < until:
            self.now += 0.5
            self.fleet.tick()

    async def show_unreadable(self, key: str = "box-a") -> None:
        """Return when the view has an unreadable record under the key."""
        fleet, newer = self.fleet, b'{"host_id":"old","cpus":{"p":4,"e":8}}'
        stored = await store(fleet._connection, f"$KV.box_hosts.{key}", newer)
        await eventually(lambda: fleet.hosts.unreadable.get(key) == stored.seq)

    async def show_renewal(self) -> None:
        """Return when the view has a renewal of the lease."""
        revision = await self.fleet.hosts.put("box-a", HOST)
        await eventually(lambda: self.fleet.hosts.revision("box-a") == revision)


@asynccontextmanager
async def watching(server: EmbeddedServer) -> AsyncIterator[Watch]:
    async with connect(server.url) as connection, task_scope() as tasks:
        await topology.ensure(connection)
        fleet = FleetView(connection, LEASE, lambda: watch.now)
        watch = Watch(fleet)
        for view in fleet.views:
            tasks.create_task(view.run())
        await fleet.wait_live()
        fleet.tick()
        yield watch


async def test_an_expired_lease_that_the_store_still_has_is_judged_again_after_a_second(
    server: EmbeddedServer,
) -> None:
    async with watching(server) as watch:
        fleet = watch.fleet
        await watch.show_renewal()
        watch.advance(LEASE + 1)
        assert fleet.state.is_orphan(CLAIM)
        assert not await fleet.is_dead(CLAIM)  # the bucket expires it by its own clock
        watch.advance(1.5)
        assert fleet.state.is_orphan(CLAIM), "after a second, not after another lease"
        await fleet.hosts.delete("box-a", fleet.hosts.revision("box-a"))
        assert await fleet.is_dead(CLAIM)


async def test_a_renewal_that_the_view_has_missed_restarts_the_lease(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with watching(server) as watch:
        fleet = watch.fleet
        await watch.show_renewal()
        watch.advance(LEASE + 1)
        missed = Record(HOST, fleet.hosts.revision("box-a") + 1)

        async def read_past_the_view(key: str) -> Record[HostRecord]:
            return missed

        monkeypatch.setattr(fleet.hosts, "read", read_past_the_view)
        assert fleet.state.is_orphan(CLAIM)
        assert not await fleet.is_dead(CLAIM)
        watch.advance(LEASE - 1)
        assert not fleet.state.is_orphan(CLAIM)


async def test_a_host_with_an_unreadable_record_lives_while_it_renews_and_offers_nothing(
    server: EmbeddedServer,
) -> None:
    async with watching(server) as watch:
        fleet = watch.fleet
        await watch.show_renewal()
        for _ in range(3):
            await watch.show_unreadable()
            assert (fleet.state.unreadable_hosts, fleet.state.hosts) == ({"box-a"}, {})
            watch.advance(LEASE - 1)
            assert not fleet.state.is_orphan(CLAIM)
        await watch.show_renewal()
        assert (fleet.state.unreadable_hosts, fleet.state.hosts) == (set(), {"box-a": HOST})
        await watch.show_unreadable()
        watch.advance(LEASE + 1)
        assert fleet.state.is_orphan(CLAIM)
        assert not fleet.state.unreadable_hosts


async def test_a_host_is_not_dead_while_the_store_has_an_unreadable_record_of_it(
    server: EmbeddedServer,
) -> None:
    async with watching(server) as watch:
        fleet = watch.fleet
        await watch.show_renewal()
        watch.advance(LEASE + 1)
        await store(fleet._connection, "$KV.box_hosts.box-a", b"junk")
        assert not await fleet.is_dead(CLAIM)
        await watch.show_unreadable()
        watch.advance(LEASE + 1)
        assert fleet.state.is_orphan(CLAIM)
        assert not await fleet.is_dead(CLAIM)  # the bucket expires it by its own clock
        watch.advance(1.5)
        assert fleet.state.is_orphan(CLAIM), "after a second, not after another lease"
        await fleet.hosts.delete("box-a", fleet.hosts.revision("box-a"))
        assert await fleet.is_dead(CLAIM)


async def test_a_record_under_an_invalid_host_name_is_ignored(server: EmbeddedServer) -> None:
    async with watching(server) as watch:
        fleet = watch.fleet
        await watch.show_unreadable("Box_1")
        await fleet.hosts.put("Box_2", HOST)
        assert (fleet.state.unreadable_hosts, fleet.state.hosts) == (set(), {})
        assert fleet._leases.holders == set()
        assert fleet._connection.metrics.refusals()["hosts: bad key"] == 2
