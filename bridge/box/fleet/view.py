"""The fleet as this Box sees it: the buckets' views, the leases, and the loads, indexed.

`state` is what deciders and planners read; it is kept current by the views' own callbacks, so a
look costs nothing and grows with nothing but what changed.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from msgspec.structs import replace

from bridge.box.state.capacity_cache import CapacityCache
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.lifecycle import ENDED
from bridge.box.state.records import (
    NOTHING,
    Demand,
    HostOrder,
    HostRecord,
    ServiceRecord,
    SlotRecord,
    check_claim,
)
from bridge.box.state.slot_index import SlotIndex
from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.jetstream.kv_view import KeyValueView
from bridge.bus.leases import WatchedLeases
from bridge.errors import NameRefused, ProtocolError
from bridge.protocol import HostStats, InstanceHealth, InstanceInfo, decode
from bridge.subjects import is_name, last_token, parse_cordon_key, parse_slot_key

_log = logging.getLogger(__name__)

_LET_GO: Final = 1.0  # seconds until a lease that has run out is looked for in the store again
_CONFIRMED: Final = 1.0  # seconds for which a direct look at a host's lease is believed
_MAX_STATS: Final = 1024 * 1024  # bytes of one host's report

_UNREADABLE_ORDER: Final = HostOrder(
    reason="the order cannot be read: a newer Box gave it, or it is damaged"
)

Touch = Callable[[Iterable[str] | None], None]
"""Told which services need a new plan; None means all of them. Must not block."""

Saw = Callable[[str, ServiceRecord | None], None]
"""Told of each change of a service's record; None for one that is gone. Must not block."""

ClaimMoved = Callable[[str, int, SlotRecord | None, SlotRecord | None], None]
"""Told of each claim of a slot, and of another host's that is there instead; of none on either side
where a slot was free, or is. Must not block.
"""

SawOrder = Callable[[str, HostOrder | None], None]
"""The same of orders, by host."""


class FleetView:
    """See the module. `touch` is called when a plan may have changed. `monotonic` is the clock of
    the leases.
    """

    def __init__(
        self,
        connection: Connection,
        lease: float,
        touch: Touch,
        saw: Saw,
        saw_order: SawOrder = lambda *_: None,
        claim_moved: ClaimMoved = lambda *_: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        subjects = connection.subjects
        self._connection = connection
        self._touch = touch
        self._monotonic = monotonic
        self._saw = saw
        self._saw_order = saw_order
        self._claim_moved = claim_moved
        self._services: dict[str, ServiceRecord] = {}
        self._hosts: dict[str, HostRecord] = {}
        self._offers: dict[str, dict[str, HostRecord]] = {}
        self._slots: dict[str, dict[int, SlotRecord]] = {}
        self._unreadable: dict[str, set[int]] = {}
        self._unreadable_services: set[str] = set()
        self._unreadable_hosts: set[str] = set()
        self._lost: dict[str, dict[int, str]] = {}
        self._lost_claims: dict[tuple[str, int], tuple[SlotRecord, float]] = {}
        self._dead: set[str] = set()
        self._confirmed: dict[str, float] = {}
        self._orders: dict[str, HostOrder] = {}
        self._used: dict[str, int] = {}
        self._reserved: dict[str, Demand] = {}
        self._loads: dict[str, InstanceHealth] = {}
        self._lives: dict[str, InstanceInfo] = {}
        self._reports: dict[str, HostStats] = {}
        self._told: dict[str, bytes] = {}
        self._slot_index = SlotIndex(self._services, self._slots, self._hosts, self._dead)
        self._leases = WatchedLeases[str](lease)
        self._lease = lease
        self._capacity_cache = CapacityCache()
        self.state = FleetState(
            services=self._services,
            hosts=self._hosts,
            offers=self._offers,
            slots=self._slots,
            unreadable=self._unreadable,
            unreadable_services=self._unreadable_services,
            unreadable_hosts=self._unreadable_hosts,
            lost=self._lost,
            dead=self._dead,
            orders=self._orders,
            used=self._used,
            reserved=self._reserved,
            loads=self._loads,
            lives=self._lives,
            slot_index=self._slot_index,
            capacity_cache=self._capacity_cache,
        )
        self.services = KeyValueView(
            connection,
            subjects.services_bucket,
            ServiceRecord,
            on_change=self._service_changed,
            on_live=self._services_live,
        )
        self.slots = KeyValueView(
            connection,
            subjects.slots_bucket,
            SlotRecord,
            check=check_claim,
            on_change=self._slot_changed,
            on_live=self._slots_live,
        )
        self.hosts = KeyValueView(
            connection,
            subjects.hosts_bucket,
            HostRecord,
            on_change=self._host_changed,
            on_live=self._hosts_live,
        )
        self.orders = KeyValueView(
            connection, subjects.admin_bucket, HostOrder, on_change=self._order_changed
        )

    @property
    def views(self) -> tuple[KeyValueView[Any], ...]:
        """All that must be live for a decision; somebody has to run them."""
        return self.services, self.slots, self.hosts, self.orders

    @property
    def live(self) -> bool:
        """Whether all that decisions are taken from is complete and current."""
        return all(view.live for view in self.views)

    async def wait_live(self) -> None:
        """Return when `live` is True."""
        while not self.live:
            for view in self.views:
                await view.wait_live()

    def tick(self) -> None:
        """Judge the leases; call it every half second or so."""
        now = self._monotonic()
        over = [key for key, (_, until) in self._lost_claims.items() if until <= now]
        for service, slot in over:
            self._find(service, slot)
            self._touch([service])
        gone = self._leases.tick(now, live=self.hosts.live)
        for host in gone:
            _log.warning("host %s is gone: its lease ran out", host)
            self._set_host(host, None)
            self._drop_report(host)
        dead = self._leases.dead(now)
        if gone or dead != self._dead:
            changed = dead ^ self._dead
            self._dead.clear()
            self._dead.update(dead)
            self._slot_index.hosts_changed(changed)
            self._touch(None)

    async def is_dead(self, claim: SlotRecord) -> bool:
        """Whether the store itself says that who holds `claim` is dead: the last look before its
        slot is taken over. An answer is good for a second. Raises BusError.
        """
        now = self._monotonic()
        if not (self.live and self.state.is_orphan(claim)):
            return False
        if now - self._confirmed.get(claim.host, -_CONFIRMED) < _CONFIRMED:
            return True
        late = self._lease - _LET_GO
        try:
            there = await self.hosts.read(claim.host)
        except ProtocolError:  # whatever it says, it is there
            self._leases.renew(claim.host, self._monotonic() - late)
            return False
        if there is not None and there.value.host_id == claim.host_id:
            # Renewed, as the view will tell; or the store lets go a little later than leases do.
            renewed = there.revision > self.hosts.revision(claim.host)
            self._leases.renew(claim.host, self._monotonic() - (0 if renewed else late))
            return False
        self._confirmed[claim.host] = now
        return True

    def see(self, info: InstanceInfo) -> None:
        """An instance of this host as it is now, ahead of its record."""
        self._lives[info.id] = info

    def unsee(self, service: str, slot: int, instance_id: str) -> None:
        """The instance has ended, and all is told. While the record of its slot says that it
        lives, as until its successor's is written, this host knows better.
        """
        if not _says_alive(self._slots.get(service, {}).get(slot), instance_id):
            self._lives.pop(instance_id, None)

    def take_stats(self, message: Message) -> None:
        """A host's report of what its instances use; a bad one is counted and dropped. One that
        says what the last one said, as of a host that is idle, is not even read.
        """
        host = last_token(message.subject)
        if self._told.get(host) == message.data:
            return
        metrics = self._connection.metrics
        if len(message.data) > _MAX_STATS:
            metrics.refuse("stats", "too large")
            return
        try:
            report = decode(HostStats, message.data)
        except ProtocolError:
            metrics.refuse("stats", "malformed")
            return
        if host in self._hosts or host in self._unreadable_hosts:  # not what a stranger makes up
            self.report(host, report, message.data)

    def report(self, host: str, report: HostStats, data: bytes) -> None:
        """Take over what `host` says its instances use, in these words."""
        self._told[host] = data
        for instance_id in self._reports.get(host, {}).keys() - report.keys():
            self._loads.pop(instance_id, None)
        self._reports[host] = report
        self._loads.update(report)

    def _drop_report(self, host: str) -> None:
        self._told.pop(host, None)
        for instance_id in self._reports.pop(host, {}):
            self._loads.pop(instance_id, None)

    # ── the views' callbacks ─────────────────────────────────────────────────────────────

    def _service_changed(
        self, key: str, old: ServiceRecord | None, new: ServiceRecord | None
    ) -> None:
        if not is_name(key):
            self._connection.metrics.refuse("services", "bad key")
            return
        self._unreadable_services.discard(key)
        if new is not None:
            self._services[key] = new
        else:
            self._services.pop(key, None)
        self._capacity_cache.records_changed()
        self._slot_index.service_changed(key)
        if new is None and key in self.services.unreadable:
            self._unreadable_services.add(key)  # not lost: a newer Box wrote it
        else:
            self._saw(key, new)
        self._touch([key])

    def _slot_changed(self, key: str, old: SlotRecord | None, new: SlotRecord | None) -> None:
        try:
            service, slot = parse_slot_key(key)
        except NameRefused:
            self._connection.metrics.refuse("slots", "bad key")
            return
        unreadable = self._unreadable.setdefault(service, set())
        unreadable.discard(slot)
        slots = self._slots.setdefault(service, {})
        if (before := slots.pop(slot, None)) is not None:
            self._count(before, -1)
            self._drop_ended(before.info.id, new)
        self._find(service, slot)
        if new is not None:
            slots[slot] = new
            self._count(new, 1)
            self._leases.expect(new.host, self._monotonic())
        elif key in self.slots.unreadable:
            unreadable.add(slot)
        elif before is not None and not self.slots.was_deleted(key):
            self._lose(service, slot, before)
        self._slot_index.slot_changed(service, slot, before, new)
        if _owner(before) != _owner(new):
            self._claim_moved(service, slot, before, new)
        if old is not None and new is not None:
            self._touch([service])
        else:  # room came or went
            self._touch({service} | self._slot_index.affected_by_room(self.state.draining()))

    def _count(self, record: SlotRecord, times: int) -> None:
        host = record.host
        if host in self._orders:
            self._capacity_cache.hosts_changed()  # a cordoned host counts for what it holds
        self._used[host] = self._used.get(host, 0) + times
        self._reserved[host] = self._reserved.get(host, NOTHING).plus(record.demand, times)
        if not self._used[host]:
            del self._used[host], self._reserved[host]
            self._leases.forget(host)

    def _lose(self, service: str, slot: int, claim: SlotRecord) -> None:
        """Nobody gave the `claim` up: the store has lost it. Its host has a lease's time to write
        it again, and keeps the room for it; it may have been started anew, and know nothing of it.
        """
        self._lost.setdefault(service, {})[slot] = claim.host
        self._lost_claims[service, slot] = claim, self._monotonic() + self._lease
        self._count(claim, 1)

    def _find(self, service: str, slot: int) -> None:
        """The slot's claim is no longer lost."""
        if (lost := self._lost_claims.pop((service, slot), None)) is not None:
            self._count(lost[0], -1)
            del self._lost[service][slot]

    def _drop_ended(self, instance_id: str, record: SlotRecord | None) -> None:
        life = self._lives.get(instance_id)
        if life is not None and life.state in ENDED and not _says_alive(record, instance_id):
            del self._lives[instance_id]

    def _host_changed(self, key: str, old: HostRecord | None, new: HostRecord | None) -> None:
        if not is_name(key):
            self._connection.metrics.refuse("hosts", "bad key")
            return
        unreadable = key in self.hosts.unreadable
        if new is None and not unreadable:
            # The view forgets a host that was released; one that vanished in a resync may
            # merely have been unable to renew: its lease decides.
            if self.hosts.get(key) is None and self.hosts.was_deleted(key):
                self._leases.release(key)
                self._set_host(key, None)
                self._drop_report(key)
                self._touch(None)
            return
        self._leases.renew(key, self._monotonic())
        before = self._hosts.get(key)
        if before == new and unreadable == (key in self._unreadable_hosts):
            return  # a renewal, as most are
        self._set_host(key, new, unreadable=unreadable)
        if before is None or new is None or _unlike(before, new):
            self._touch(None)

    def _set_host(self, name: str, new: HostRecord | None, *, unreadable: bool = False) -> None:
        """What the live host `name` tells of itself now, None if it lives no more or cannot be
        read.
        """
        (self._unreadable_hosts.add if unreadable else self._unreadable_hosts.discard)(name)
        before = self._hosts.pop(name, None)
        for service in before.services if before and not before.closing else ():
            del self._offers[service][name]
            if not self._offers[service]:
                del self._offers[service]
        if new is not None:
            self._hosts[name] = new
            for service in new.services if not new.closing else ():
                self._offers.setdefault(service, {})[name] = new
        self._capacity_cache.hosts_changed()
        self._slot_index.hosts_changed([name])

    def _order_changed(self, key: str, old: HostOrder | None, new: HostOrder | None) -> None:
        try:
            host = parse_cordon_key(key)
        except NameRefused:
            self._connection.metrics.refuse("orders", "bad key")
            return
        if unreadable := key in self.orders.unreadable:
            self._orders[host] = _UNREADABLE_ORDER
        elif new is None or new.lifted:
            self._orders.pop(host, None)
        else:
            self._orders[host] = new
        if not unreadable:  # else it is not lost
            self._saw_order(host, new)
        self._capacity_cache.hosts_changed()
        self._touch(None)

    # A complete view tells of what it holds, not of what it could not read.

    def _services_live(self, live: bool) -> None:
        if live:
            self._unreadable_services.clear()
            self._unreadable_services.update(self.services.unreadable)
            self._capacity_cache.records_changed()

    def _slots_live(self, live: bool) -> None:
        if live:
            self._unreadable.clear()
            for key in self.slots.unreadable:
                with contextlib.suppress(NameRefused):
                    service, slot = parse_slot_key(key)
                    self._unreadable.setdefault(service, set()).add(slot)

    def _hosts_live(self, live: bool) -> None:
        if live:
            self._leases.rearm(self._monotonic())


def _unlike(before: HostRecord, new: HostRecord) -> bool:
    """Whether plans may come out differently: they read neither notices nor since when it lives."""
    return replace(before, notices=new.notices, since=new.since) != new


def _says_alive(record: SlotRecord | None, instance_id: str) -> bool:
    return record is not None and record.info.id == instance_id and record.info.state not in ENDED


def _owner(record: SlotRecord | None) -> tuple[str, str] | None:
    return None if record is None else (record.host, record.host_id)
