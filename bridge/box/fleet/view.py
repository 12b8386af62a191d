"""The fleet as this Box sees it: the buckets' views feed a FleetIndex, and the leases are judged.

`state` is what decisions and plans read. The views' callbacks keep it current, so reading it costs
nothing, and a change costs only what changed.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from msgspec.structs import replace

from bridge.box.fleet.listener import FleetListener
from bridge.box.fleet.record_codec import HOST, ORDER, SERVICE, SLOT, RecordCodec, newest
from bridge.box.fleet.stats_report import MAX_REPORT, Part, PartialReport
from bridge.box.journal.journal import Journal
from bridge.box.state.fleet_index import FleetIndex
from bridge.box.state.records import (
    HostOrder,
    HostRecord,
    ServiceRecord,
    SlotRecord,
)
from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.jetstream.kv_view import KeyValueView
from bridge.bus.leases import WatchedLeases
from bridge.errors import NameRefused, ProtocolError
from bridge.protocol import HostStats, decode
from bridge.subjects import is_name, last_token, parse_cordon_key, parse_slot_key

_log = logging.getLogger(__name__)

_STORE_DELAY: Final = 1.0  # seconds until an expired lease that the store still has is read again
_CONFIRMED: Final = 1.0  # seconds for which a direct read of a host's lease is trusted
_NAMED: Final = 5  # hosts in one line of the log
_IDS: Final = 16  # ids of one host name that are remembered

_UNREADABLE_ORDER: Final = HostOrder(
    reason="the order cannot be read: a newer Box gave it, or it is damaged"
)


class FleetView:
    """See the module. `lease` is the hosts' lease in seconds, `monotonic` the clock it runs by.

    This Box writes as `host`. `held` are the services whose record the store has lost: nothing is
    decided or planned for them.
    """

    def __init__(
        self,
        connection: Connection,
        lease: float,
        monotonic: Callable[[], float] = time.monotonic,
        *,
        host: str = "box",
        journal: Journal | None = None,
    ) -> None:
        subjects = connection.subjects
        self._connection = connection
        self._lease = lease
        self._monotonic = monotonic
        self._leases = WatchedLeases[str](lease)
        self._listeners: list[FleetListener] = []
        self._confirmed: dict[str, float] = {}
        self._renewed: dict[str, dict[str, float]] = {}  # when each id of a host renewed last
        self._stats_data: dict[str, bytes] = {}
        self._partial_stats: dict[str, PartialReport] = {}
        self._swept: tuple[float, int] | None = None  # when, and the hosts' sequence then
        self.index = FleetIndex()
        self.state = self.index.state
        self.held: set[str] = set()
        services, orders = (journal.services, journal.orders) if journal else ({}, {})
        self.services = KeyValueView(
            connection,
            subjects.services_bucket,
            ServiceRecord,
            codec=RecordCodec(SERVICE, host, newest(lambda key: self.services.get(key), services)),  # noqa: PLW0108 (not made yet)
            on_change=self._service_changed,
            on_live=self._services_live,
        )
        self.slots = KeyValueView(
            connection,
            subjects.slots_bucket,
            SlotRecord,
            codec=RecordCodec(SLOT, host),
            on_change=self._slot_changed,
            on_live=self._slots_live,
        )
        self.hosts = KeyValueView(
            connection,
            subjects.hosts_bucket,
            HostRecord,
            codec=RecordCodec(HOST, host),
            on_change=self._host_changed,
            on_live=self._hosts_live,
        )
        self.orders = KeyValueView(
            connection,
            subjects.admin_bucket,
            HostOrder,
            codec=RecordCodec(ORDER, host, newest(lambda key: self.orders.get(key), orders)),  # noqa: PLW0108
            on_change=self._order_changed,
        )

    def subscribe(self, listener: FleetListener) -> None:
        """Report every later change to `listener`, in the order of subscription."""
        self._listeners.append(listener)

    @property
    def views(self) -> tuple[KeyValueView[Any], ...]:
        """The views that must all be live for a decision; the caller runs them."""
        return self.services, self.slots, self.hosts, self.orders

    @property
    def live(self) -> bool:
        """Whether everything that decisions read is complete and current."""
        return all(view.live for view in self.views)

    def blocker(self) -> str | None:
        """Why decisions would read an incomplete or outdated state."""
        return None if self.live else "this Box's view of the fleet is not current"

    async def wait_live(self) -> None:
        """Return when `live` is True."""
        while not self.live:
            for view in self.views:
                await view.wait_live()

    # ── leases ───────────────────────────────────────────────────────────────────────────

    def tick(self) -> None:
        """Judge the leases; call it every half second or so."""
        now = self._monotonic()
        freed, emptied = self.index.expire_lost_claims(now)
        self._forget_leases(emptied)
        if freed:
            self._plan_needed(freed)
        gone = self._leases.tick(now, live=self.hosts.live)
        if gone:
            names = ", ".join(gone[:_NAMED]) + (", …" if len(gone) > _NAMED else "")
            _log.warning("the leases of %d hosts ran out: %s", len(gone), names)
        for host in gone:
            self._remove_host(host)
        if self.index.set_dead(self._leases.dead(now)) or gone:
            self._plan_needed(None)
        self._forget_past_hosts(now)

    def _forget_past_hosts(self, now: float) -> None:
        """Forget the hosts that have gone and hold no slot: new ones may always come.

        A host's record expires after a lease, in the store and here. What had come two leases ago
        and was not renewed is not in the store any more.
        """
        if not self.hosts.live:
            return
        at, seq = self._swept or (now, 0)
        if self._swept is not None and now - at < 2 * self._lease:
            return
        self._swept = now, self.hosts.seq
        self.hosts.forget_expired(seq)
        self._leases.forget_past(now, self.state.used)
        self._renewed = {
            host: ids
            for host, ids in self._renewed.items()
            if any(now - at < self._lease for at in ids.values())
        }
        self._confirmed = {
            host: at for host, at in self._confirmed.items() if now - at < _CONFIRMED
        }

    async def is_dead(self, claim: SlotRecord) -> bool:
        """Whether the store itself confirms that the holder of `claim` is dead.

        This is the last check before its slot is taken over. A confirmation is valid for a second.
        Raises BusError.
        """
        now = self._monotonic()
        if not (self.live and self.state.is_orphan(claim)):
            return False
        if claim.host in self.state.hosts and self._has_renewed(claim.host, claim.host_id, now):
            return False  # another id has the name, but this one's lease runs
        if now - self._confirmed.get(claim.host, -_CONFIRMED) < _CONFIRMED:
            return True
        late = self._lease - _STORE_DELAY
        try:
            stored = await self.hosts.read(claim.host)
        except ProtocolError:  # the record exists, whatever it contains
            self._leases.renew(claim.host, self._monotonic() - late)
            return False
        if stored is not None and stored.value.host_id == claim.host_id:
            # Renewed, and the view is late; or the store expires a lease a little after this Box.
            renewed = stored.revision > self.hosts.revision(claim.host)
            self._leases.renew(claim.host, self._monotonic() - (0 if renewed else late))
            return False
        self._confirmed[claim.host] = now
        return True

    def _note_renewal(self, host: str, host_id: str, now: float) -> None:
        ids = self._renewed.setdefault(host, {})
        ids[host_id] = now
        if len(ids) > _IDS:
            del ids[min(ids, key=ids.__getitem__)]

    def _has_renewed(self, host: str, host_id: str, now: float) -> bool:
        """Whether this id of `host` has renewed its record within a lease."""
        return now - self._renewed.get(host, {}).get(host_id, float("-inf")) < self._lease

    def _forget_leases(self, hosts: Iterable[str]) -> None:
        """These hosts hold no claim any more: nothing depends on whether they are dead."""
        for host in hosts:
            self._leases.forget(host)

    # ── hosts' reports ───────────────────────────────────────────────────────────────────

    def take_stats(self, message: Message) -> None:
        """A host's report of what its instances use; a bad one is counted and dropped.

        A report with the same bytes as the last one, as from an idle host, is not even decoded.
        """
        host = last_token(message.subject)
        if self._stats_data.get(host) == message.data:
            return
        metrics = self._connection.metrics
        if len(message.data) > MAX_REPORT:
            metrics.refuse("stats", "too large")
            return
        try:
            part = Part.of(message)
            stats = decode(HostStats, message.data)
        except ProtocolError:
            metrics.refuse("stats", "malformed")
            return
        if host not in self.state.hosts and host not in self.state.unreadable_hosts:
            return
        if part is None:
            self.set_stats(host, stats, message.data)
        elif whole := self._partial_stats.setdefault(host, PartialReport()).add(part, stats):
            self.set_stats(host, whole, b"")

    def set_stats(self, host: str, stats: HostStats, data: bytes) -> None:
        """Store what `host` reports of its instances; `data` is the report as it was sent, empty
        if it came in parts.
        """
        self._stats_data[host] = data
        self.index.set_stats(host, stats)

    # ── the views' callbacks ─────────────────────────────────────────────────────────────

    def _plan_needed(self, services: Iterable[str] | None) -> None:
        for listener in self._listeners:
            listener.plan_needed(services)

    def _service_changed(
        self, key: str, old: ServiceRecord | None, new: ServiceRecord | None
    ) -> None:
        if not is_name(key):
            self._connection.metrics.refuse("services", "bad key")
            return
        unreadable = new is None and key in self.services.unreadable
        held = key in self.held
        self.index.set_service(key, None if held else new, unreadable=unreadable or held)
        if not unreadable:  # an unreadable record is not lost: a newer Box wrote it
            for listener in self._listeners:
                listener.service_changed(key, new)
        self._plan_needed([key])

    def hold(self, service: str) -> None:
        """Decide and plan nothing for `service` until `release`: the store has lost its record."""
        self.held.add(service)
        self.index.set_service(service, None, unreadable=True)
        self._plan_needed([service])

    def release(self, service: str) -> None:
        """The store has a record of `service` again."""
        self.held.discard(service)
        stored = self.services.get(service)
        unreadable = service in self.services.unreadable
        self.index.set_service(service, stored.value if stored else None, unreadable=unreadable)
        self._plan_needed([service])

    def keep_order(self, host: str, order: HostOrder) -> None:
        """Follow `order`, which the store has lost, until it is stored again."""
        self.index.set_order(host, None if order.lifted else order)
        self._plan_needed(None)

    def _slot_changed(self, key: str, old: SlotRecord | None, new: SlotRecord | None) -> None:
        try:
            service, slot = parse_slot_key(key)
        except NameRefused:
            self._connection.metrics.refuse("slots", "bad key")
            return
        now = self._monotonic()
        unreadable = new is None and key in self.slots.unreadable
        lost = new is None and not unreadable and not self.slots.was_deleted(key)
        change = self.index.set_slot(
            service,
            slot,
            new,
            unreadable=unreadable,
            lost_until=now + self._lease if lost else None,
        )
        self._forget_leases(change.emptied)
        if new is not None:
            self._leases.expect(new.host, now)
        if _owner(change.before) != _owner(new):
            for listener in self._listeners:
                listener.slot_owner_changed(service, slot, change.before, new)
        if old is not None and new is not None:
            self._plan_needed([service])
        else:  # room was taken or freed
            self._plan_needed({service} | self.index.services_affected_by_room())

    def _host_changed(self, key: str, old: HostRecord | None, new: HostRecord | None) -> None:
        if not is_name(key):
            self._connection.metrics.refuse("hosts", "bad key")
            return
        unreadable = key in self.hosts.unreadable
        if new is None and not unreadable:
            # A host whose record was deleted has left. One that disappeared in a resync may only
            # have been unable to renew: its lease decides.
            if self.hosts.get(key) is None and self.hosts.was_deleted(key):
                self._host_deleted(key)
            return
        now = self._monotonic()
        self._leases.renew(key, now)
        if new is not None:
            self._note_renewal(key, new.host_id, now)
        before = self.state.hosts.get(key)
        if before == new and unreadable == (key in self.state.unreadable_hosts):
            return  # a renewal, as most changes are
        self.index.set_host(key, new, unreadable=unreadable)
        self._report_host(key)
        if before is None or new is None or _affects_plans(before, new):
            self._plan_needed(None)

    def _host_deleted(self, name: str) -> None:
        """A host that leaves marks its record first. Without that somebody else deleted the record:
        its lease runs on, and a live host writes it again.
        """
        known = self.state.hosts.get(name)
        if known is None or known.closing:
            self._leases.release(name)
            self._renewed.pop(name, None)
            self._remove_host(name)
            self._plan_needed(None)
        self._report_host(name)

    def _report_host(self, name: str) -> None:
        for listener in self._listeners:
            listener.host_changed(name)

    def _remove_host(self, name: str) -> None:
        self.index.set_host(name, None)
        self.index.set_stats(name, {})
        self._stats_data.pop(name, None)
        self._partial_stats.pop(name, None)

    def _order_changed(self, key: str, old: HostOrder | None, new: HostOrder | None) -> None:
        try:
            host = parse_cordon_key(key)
        except NameRefused:
            self._connection.metrics.refuse("orders", "bad key")
            return
        if key in self.orders.unreadable:
            self.index.set_order(host, _UNREADABLE_ORDER)
        else:
            self.index.set_order(host, None if new is None or new.lifted else new)
            for listener in self._listeners:
                listener.order_changed(host, new)
        self._plan_needed(None)

    # A view that becomes complete reports what it holds, not which records it could not read.

    def _services_live(self, live: bool) -> None:
        if live:
            self.index.set_unreadable_services({*self.services.unreadable, *self.held})

    def _slots_live(self, live: bool) -> None:
        if live:
            self.index.set_unreadable_slots(_slots_of(self.slots.unreadable))

    def _hosts_live(self, live: bool) -> None:
        self._swept = None  # a store that is created again numbers its messages from 1
        if live:
            self._leases.rearm(self._monotonic())


def _slots_of(keys: Iterable[str]) -> Iterable[tuple[str, int]]:
    for key in keys:
        with contextlib.suppress(NameRefused):
            yield parse_slot_key(key)


def _affects_plans(before: HostRecord, new: HostRecord) -> bool:
    """Whether plans may change: they read neither a host's notices nor when it took its lease."""
    return replace(before, notices=new.notices, since=new.since) != new


def _owner(claim: SlotRecord | None) -> tuple[str, str] | None:
    return None if claim is None else (claim.host, claim.host_id)
