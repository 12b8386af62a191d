"""What a Box and a gateway keep of hosts and instances that have gone: nothing that grows.

Each test lets names come and go that never return, as an autoscaler and a crash loop make them. It
compares the heap and the files after a tenth of the lives with those after all of them.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec.structs import replace

from bridge.box.fleet.view import FleetView
from bridge.box.journal.entry import JournalEntry
from bridge.box.journal.journal import Journal
from bridge.box.runner.local_slots import LocalSlots
from bridge.box.runner.self_reports import SelfReports
from bridge.box.runtimes.process_identity import ProcessIdentity
from bridge.box.state import lifecycle
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.records import HostIdentity, HostRecord, Offer, SlotRecord
from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.registrations import Registrations
from bridge.gateway.events.filter import EventFilter
from bridge.gateway.events.hub import EventHub
from bridge.gateway.routes.feed import RouteFeed
from bridge.gateway.routes.state import MEMORY, RouteState
from bridge.observe import Metrics
from bridge.protocol import (
    InstanceDeregistration,
    InstanceEvent,
    InstanceHealth,
    InstanceInfo,
    InstanceRegistration,
    InstanceState,
    ScaleConfig,
    encode,
    now,
)
from bridge.settings import NatsConfig, ServiceConfig, Timing
from bridge.subjects import slot_key

pytestmark = pytest.mark.slow

LIVES: Final = 100_000
LEASE: Final = 10.0
AT: Final = now()
_WARM: Final = LIVES // 10
_SLACK: Final = 2_000  # blocks of memory, where one for each life would be 90,000

S = InstanceState


def check_flat(
    live: Callable[[int], object], settle: Callable[[], object], slack: int = _SLACK
) -> None:
    """Live all lives, and compare the heap after the first tenth and at the end."""

    def blocks() -> int:
        settle()
        gc.collect()
        return sys.getallocatedblocks()

    for number in range(_WARM):
        live(number)
    before = blocks()
    for number in range(_WARM, LIVES):
        live(number)
    assert blocks() - before < slack


class Fleet:
    """The FleetView of one Box, fed as the streams would feed it, with a clock of its own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.seq = 0
        connection = Connection(NatsConfig(), "test", Metrics())
        self.view = FleetView(connection, LEASE, lambda: self.now)
        for view in self.view.views:
            view.begin()
            view.complete(0)

    def put_host(self, name: str, record: HostRecord | None, headers: bytes = b"") -> None:
        self.seq += 1
        data = b"" if record is None else encode(record)
        message = Message(f"$KV.box_hosts.{name}", "", data, headers)
        self.view.hosts.take(message, self.seq, 0)

    def put_slot(self, claim: SlotRecord | None, key: str, headers: bytes = b"") -> None:
        self.seq += 1
        data = b"" if claim is None else encode(claim)
        self.view.slots.take(Message(f"$KV.box_slots.{key}", "", data, headers), self.seq, 0)

    def pass_time(self, seconds: float) -> None:
        """Let time pass, in which one host renews its lease."""
        for _ in range(int(seconds * 2)):
            self.now += 0.5
            self.put_host("keeper", HOST)
            self.view.tick()


HOST: Final = HostRecord(
    host_id="id",
    runtime="process",
    cpus=8,
    max_instances=20,
    services={f"svc-{number}": Offer() for number in range(3)},
)
DELETED: Final = b"NATS/1.0\r\nKV-Operation: DEL\r\n\r\n"


def _claim(name: str, host: str, service: str = "web") -> SlotRecord:
    info = InstanceInfo(id=name, state=S.READY, service=service, created_at=AT)
    return SlotRecord(host=host, host_id="id", config="c", seq=1, info=info)


@pytest.mark.parametrize("end", ["lease runs out", "host leaves", "slots are taken over"])
async def test_a_fleet_keeps_nothing_of_hosts_that_have_gone(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest keeps every line of the log.
    monkeypatch.setattr(logging.getLogger("bridge.box.fleet.view"), "disabled", True)
    fleet = Fleet()
    fleet.view.state.slot_index.age_order.places()  # so that the order is kept, too

    def live(number: int) -> None:
        name, key = f"node-{number}", slot_key("web", number % 50)
        fleet.put_host(name, HOST)
        health = encode({f"web-{number}": InstanceHealth()})
        fleet.view.take_stats(Message(f"box.stats.{name}", "", health, b""))
        if end == "host leaves":
            fleet.put_host(name, None, DELETED)
        elif end == "slots are taken over":
            fleet.put_slot(_claim(f"web-{number}", name), key)
        if number % 25 == 0:
            fleet.now += 0.5
            fleet.put_host("keeper", HOST)
            fleet.view.tick()

    check_flat(live, lambda: fleet.pass_time(6 * LEASE))
    assert fleet.view.state.hosts.keys() == {"keeper"}


async def test_a_fleet_keeps_nothing_of_instances_that_have_ended() -> None:
    fleet = Fleet()
    fleet.put_host("keeper", HOST)
    fleet.view.state.slot_index.age_order.places()
    own = fleet.view.state.own_instances
    reports = SelfReports(Metrics(), own, fleet.view.state.loads, 10, lambda: fleet.now)

    def live(number: int) -> None:
        service, slot, name = f"svc-{number % 7}", number % 50, f"i-{number}"
        claim = _claim(name, "keeper", service)
        fleet.view.index.set_own_instance(claim.info)
        fleet.put_slot(claim, slot_key(service, slot))
        stats = {name: InstanceHealth(inflight_requests=number % 9)}
        fleet.view.set_stats("keeper", stats, encode(stats))
        report = encode(InstanceHealth())
        reports.take(Message(f"box.health.{service}.{name}", "", report, b""))
        ended = replace(claim.info, state=S.STOPPED)
        fleet.view.index.set_own_instance(ended)
        fleet.put_slot(replace(claim, info=ended, seq=2), slot_key(service, slot))
        fleet.view.index.end_own_instance(service, slot, name)
        reports.forget(name)
        if number % 3:
            fleet.put_slot(None, slot_key(service, slot), DELETED)

    check_flat(live, lambda: fleet.pass_time(6 * LEASE))
    assert not own


def _entry(number: int) -> JournalEntry:
    return JournalEntry(
        slot=number % 50,
        config="c",
        service=ServiceConfig(command=["run", "{port}"]),
        overrides=ScaleConfig(),
        life=lifecycle.begin(f"i-{number}", f"svc-{number % 7}", AT),
        identity=ProcessIdentity(pid=17, started=4, boot_id="b"),
        port=8080,
    )


async def test_a_journal_keeps_nothing_of_instances_that_have_ended(tmp_path: Path) -> None:
    path, sizes, blocks, stored = tmp_path / "journal.db", list[int](), list[int](), 0
    async with Journal.open(path) as journal:
        for number in range(LIVES):
            entry = _entry(number)
            for to in (S.BOOTING, S.READY, S.DRAINING, S.STOPPING, S.STOPPED):
                life, event = lifecycle.step(entry.life, to, AT)
                entry = replace(entry, life=life)
                journal.put(entry, event)
            journal.forget(entry.life.info.id)
            if number % 20 == 19:
                await journal.wait_written()
                while pending := await journal.pending(stored, 1000):
                    journal.mark_stored([item.n for item in pending])
                    stored = pending[-1].n
            if number + 1 in (_WARM, LIVES):
                gc.collect()
                blocks.append(sys.getallocatedblocks())
                sizes.append(sum(file.stat().st_size for file in tmp_path.iterdir()))
        assert journal.backlog == 0
    assert blocks[1] - blocks[0] < _SLACK
    assert sizes[1] < 2 * sizes[0]


async def test_a_gateway_keeps_nothing_of_instances_that_have_gone() -> None:
    clock = [0.0]
    connection = Connection(NatsConfig(), "test", Metrics())
    state = RouteState(30)
    feed = RouteFeed(connection, state, None, 30, lambda: None, clock=lambda: clock[0])
    hub = EventHub(connection, EventFilter(), 1000)
    seq = 0
    feed.registry.begin()
    feed.registry.complete(0)

    def take(kind: str, service: str, name: str, data: bytes) -> None:
        nonlocal seq
        seq += 1
        message = Message(f"box.{kind}.{service}.{name}", "", data, b"")
        feed.registry.take(message, seq, int(clock[0] * 1e9) + seq)

    def tell(service: str, event: InstanceEvent, number: int) -> None:
        headers = f"NATS/1.0\r\nBox-Seq: {number}\r\n\r\n".encode()
        message = Message(f"box.events.{service}", "", encode(event), headers)
        feed._take_event(message, seq, 0)
        hub._take(message, seq, 0)

    def live(number: int) -> None:
        service, name, host = f"svc-{number}", f"i-{number}", f"host-{number}"
        at = AT + timedelta(seconds=number)
        tell(service, InstanceEvent.transition(name, service, S.BOOTING, S.READY, at=at), 2)
        registration = InstanceRegistration(
            instance_id=name,
            service=service,
            endpoint=f"10.0.0.1:{number % 60000 + 1}",
            metadata={"number": str(number)},
            started_at=at,
        )
        take("register", service, name, encode(registration))
        sick = InstanceHealth(healthy=bool(number % 5))
        feed._take_health(Message(f"box.health.{service}.{name}", "", encode(sick), b""))
        feed._take_stats(Message(f"box.stats.{host}", "", encode({name: sick}), b""))
        if number % 3:  # the others only stop renewing
            tell(service, InstanceEvent.transition(name, service, S.READY, S.DRAINING, at=at), 3)
            withdrawal = InstanceDeregistration(instance_id=name, service=service)
            take("deregister", service, name, encode(withdrawal))
        if number % 50 == 0:
            clock[0] += 1.0
            state.tick(clock[0], live=True)
            state.take_changes()

    def settle() -> None:
        for _ in range(int(MEMORY) + 100):
            clock[0] += 1.0  # a longer step would count as a stall of this process
            state.tick(clock[0], live=True)
        state.take_changes()

    check_flat(live, settle, slack=LIVES // 4)  # it shares some thousands of recent values
    assert len(state.routes) == 0
    assert not state._rest


class StoringConnection(Connection):
    """A connection to a server that stores everything at once. `door` holds up its answers."""

    def __init__(self) -> None:
        super().__init__(NatsConfig(), "test", Metrics())
        self.door: asyncio.Event | None = None

    async def request(self, subject: str, *args: object, **kwargs: object) -> Message:
        if self.door is not None:
            await self.door.wait()
        return Message(subject, "", b'{"stream":"BOX_REGISTRY","seq":1}', b"")


def _registration(number: int) -> tuple[InstanceRegistration, InstanceDeregistration]:
    name, service = f"i-{number}", f"svc-{number % 7}"
    return (
        InstanceRegistration(
            instance_id=name, service=service, endpoint="10.0.0.1:80", started_at=AT
        ),
        InstanceDeregistration(instance_id=name, service=service),
    )


async def _nothing() -> None:
    """Restore nothing."""


async def test_registrations_keep_nothing_of_instances_that_have_ended() -> None:
    registrations = Registrations(StoringConnection(), "box-a", Timing(), _nothing)
    blocks: list[int] = []
    for number in range(LIVES):
        registration, withdrawal = _registration(number)
        await registrations.register(registration, seq=3)
        if number % 4 == 0:
            registrations.update(registration)
        await registrations.deregister(withdrawal)
        registrations.after_withdrawal(registration.instance_id, lambda: None)
        registrations.forget(registration.instance_id)
        if number + 1 in (_WARM, LIVES):
            gc.collect()
            blocks.append(sys.getallocatedblocks())
    assert blocks[1] - blocks[0] < _SLACK


async def test_an_instance_that_ends_while_it_is_registered_leaves_nothing() -> None:
    connection = StoringConnection()
    registrations = Registrations(connection, "box-a", Timing(), _nothing)
    registration, withdrawal = _registration(1)
    connection.door = asyncio.Event()
    late = asyncio.ensure_future(registrations.register(registration))
    await asyncio.sleep(0)
    registrations.withdraw(withdrawal)
    registrations.forget(registration.instance_id)
    connection.door.set()
    await late
    assert not registrations.is_stored(registration.instance_id)


class _Ended:
    """An instance that has ended, as its slot sees it."""

    def __init__(self, entry: JournalEntry) -> None:
        self.id, self.entry, self.life = entry.life.info.id, entry, entry.life
        self.state = entry.life.info.state
        self.leaving = False

    @property
    def publication(self) -> _Ended:
        return self

    def seconds_serving(self) -> float:
        return 0.0

    def record_failure(self, failures: int, retry_at: object) -> None:
        self.entry = replace(self.entry, failures=failures)

    def supersede(self) -> None: ...

    def close(self) -> None: ...

    def forget(self) -> None: ...


@pytest.mark.parametrize("end", [S.STOPPED, S.FAILED])
async def test_slots_keep_nothing_of_instances_that_have_ended(end: InstanceState) -> None:
    slots = LocalSlots(HostIdentity(host="box-a", host_id="id"))
    state = FleetState()
    timing = Timing()

    def live(number: int) -> None:
        entry = _entry(number)
        life = replace(entry.life, info=replace(entry.life.info, state=end))
        instance: Any = _Ended(replace(entry, life=life))
        slot = slots.put(instance, instance.entry)
        if end is S.FAILED:
            slot.count_failure(timing, AT)
        slot.ended = True
        slots.settle(slot)
        service = entry.life.info.service
        assert slots.find(instance.id) is None
        slots.to_plan(service)
        slots.retries(since=0.0)
        slots.vacant(state)
        if number % 3:
            slots.prune(service, state)  # the slot went to another host

    check_flat(live, lambda: None)
    for service in slots.services:
        slots.prune(service, state)
    assert not slots
