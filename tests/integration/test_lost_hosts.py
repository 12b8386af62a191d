"""When a host counts as dead: its lease has run out, and the store itself has let go of it."""

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
    """A fleet whose leases go by a clock that the test sets; the buckets are the server's."""

    def __init__(self, fleet: FleetView) -> None:
        self.fleet = fleet
        self.now = 0.0

    def passes(self, seconds: float) -> None:
        """That time goes by, watched all the while."""
        until = self.now + seconds
        while self.now < until:
            self.now += 0.5
            self.fleet.tick()

    async def sees_unreadable(self, key: str = "box-a") -> None:
        """Return when something has been seen there that is no host's record."""
        fleet, newer = self.fleet, b'{"host_id":"old","cpus":{"p":4,"e":8}}'
        stored = await store(fleet._connection, f"$KV.box_hosts.{key}", newer)
        await eventually(lambda: fleet.hosts.unreadable.get(key) == stored.seq)

    async def sees(self) -> None:
        """Return when the lease that was renewed in the store has been seen."""
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


async def test_a_lease_that_the_store_keeps_a_little_longer_is_looked_for_again_soon(
    server: EmbeddedServer,
) -> None:
    async with watching(server) as watch:
        fleet = watch.fleet
        await watch.sees()
        watch.passes(LEASE + 1)
        assert fleet.state.is_orphan(CLAIM)
        assert not await fleet.is_dead(CLAIM)  # the bucket's own lease runs by another clock
        watch.passes(1.5)
        assert fleet.state.is_orphan(CLAIM), "after a second, not after another lease"
        await fleet.hosts.delete("box-a", fleet.hosts.revision("box-a"))
        assert await fleet.is_dead(CLAIM)


async def test_a_lease_that_was_renewed_unseen_runs_anew(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with watching(server) as watch:
        fleet = watch.fleet
        await watch.sees()
        watch.passes(LEASE + 1)
        unseen = Record(HOST, fleet.hosts.revision("box-a") + 1)

        async def late_view_read(key: str) -> Record[HostRecord]:
            return unseen

        monkeypatch.setattr(fleet.hosts, "read", late_view_read)
        assert fleet.state.is_orphan(CLAIM)
        assert not await fleet.is_dead(CLAIM)
        watch.passes(LEASE - 1)
        assert not fleet.state.is_orphan(CLAIM)


async def test_a_host_that_cannot_be_read_lives_while_it_is_heard_of_and_is_offered_nothing(
    server: EmbeddedServer,
) -> None:
    async with watching(server) as watch:
        fleet = watch.fleet
        await watch.sees()
        for _ in range(3):
            await watch.sees_unreadable()
            assert (fleet.state.unreadable_hosts, fleet.state.hosts) == ({"box-a"}, {})
            watch.passes(LEASE - 1)
            assert not fleet.state.is_orphan(CLAIM)
        await watch.sees()
        assert (fleet.state.unreadable_hosts, fleet.state.hosts) == (set(), {"box-a": HOST})
        await watch.sees_unreadable()
        watch.passes(LEASE + 1)
        assert fleet.state.is_orphan(CLAIM)
        assert not fleet.state.unreadable_hosts


async def test_a_host_is_not_dead_of_whom_the_store_has_what_cannot_be_read(
    server: EmbeddedServer,
) -> None:
    async with watching(server) as watch:
        fleet = watch.fleet
        await watch.sees()
        watch.passes(LEASE + 1)
        await store(fleet._connection, "$KV.box_hosts.box-a", b"junk")
        assert not await fleet.is_dead(CLAIM)
        await watch.sees_unreadable()
        watch.passes(LEASE + 1)
        assert fleet.state.is_orphan(CLAIM)
        assert not await fleet.is_dead(CLAIM)  # the bucket's own lease runs by another clock
        watch.passes(1.5)
        assert fleet.state.is_orphan(CLAIM), "after a second, not after another lease"
        await fleet.hosts.delete("box-a", fleet.hosts.revision("box-a"))
        assert await fleet.is_dead(CLAIM)


async def test_what_is_put_under_no_hosts_name_is_no_host(server: EmbeddedServer) -> None:
    async with watching(server) as watch:
        fleet = watch.fleet
        await watch.sees_unreadable("Box_1")
        await fleet.hosts.put("Box_2", HOST)
        assert (fleet.state.unreadable_hosts, fleet.state.hosts) == (set(), {})
        assert fleet._leases.holders == set()
        assert fleet._connection.metrics.refusals()["hosts: bad key"] == 2
