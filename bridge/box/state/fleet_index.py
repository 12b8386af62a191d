"""The indexes behind one FleetState, kept current by one call per record change. Pure.

`state` reads the same mappings that this class writes, so a decision costs nothing to prepare. A
change costs what changed, not what the fleet holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import TypeVar

from msgspec import Struct

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
)
from bridge.box.state.slot_index import SlotIndex, mark, remove_slot
from bridge.protocol import HostStats, InstanceHealth, InstanceInfo

K = TypeVar("K")
V = TypeVar("V")


class LostClaim(Struct, frozen=True):
    """A claim that the store has lost. Its host may write it again until `until` (monotonic)."""

    claim: SlotRecord
    until: float


class SlotChange(Struct, frozen=True):
    """The claim of a slot before a change, and the hosts whose last claim the change removed."""

    before: SlotRecord | None
    emptied: list[str]


class FleetIndex:
    """Everything that a Box knows of the fleet, sorted for decisions.

    Nothing else may write to the mappings of `state`.
    """

    def __init__(self) -> None:
        self._services: dict[str, ServiceRecord] = {}
        self._hosts: dict[str, HostRecord] = {}
        self._slots: dict[str, dict[int, SlotRecord]] = {}
        self._unreadable: dict[str, set[int]] = {}
        self._unreadable_services: set[str] = set()
        self._unreadable_hosts: set[str] = set()
        self._lost: dict[str, dict[int, str]] = {}
        self._lost_claims: dict[tuple[str, int], LostClaim] = {}
        self._dead: set[str] = set()
        self._orders: dict[str, HostOrder] = {}
        self._used: dict[str, int] = {}
        self._reserved: dict[str, Demand] = {}
        self._loads: dict[str, InstanceHealth] = {}
        self._own_instances: dict[str, InstanceInfo] = {}
        self._stats: dict[str, HostStats] = {}
        self._slot_index = SlotIndex(self._services, self._slots, self._hosts, self._dead)
        self._capacity_cache = CapacityCache()
        self.state = FleetState(
            services=self._services,
            hosts=self._hosts,
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
            own_instances=self._own_instances,
            slot_index=self._slot_index,
            capacity_cache=self._capacity_cache,
        )

    # ── services ─────────────────────────────────────────────────────────────────────────

    def set_service(
        self, service: str, record: ServiceRecord | None, *, unreadable: bool = False
    ) -> None:
        """The service's record is `record` now, or gone, or `unreadable`."""
        _put(self._services, service, record)
        mark(self._unreadable_services, service, unreadable)
        self._capacity_cache.records_changed()
        self._slot_index.service_changed(service)

    def set_unreadable_services(self, services: Iterable[str]) -> None:
        """Exactly these services have an unreadable record."""
        self._unreadable_services.clear()
        self._unreadable_services.update(services)
        self._capacity_cache.records_changed()

    # ── slots ────────────────────────────────────────────────────────────────────────────

    def set_slot(
        self,
        service: str,
        slot: int,
        claim: SlotRecord | None,
        *,
        unreadable: bool = False,
        lost_until: float | None = None,
    ) -> SlotChange:
        """The slot's claim is `claim` now, or gone, or `unreadable`.

        `lost_until` says that no Box deleted it: the store has lost it. Its host keeps the room for
        it until then, and may write it again. The host may also have restarted without knowing it.
        """
        emptied: list[str] = []
        slots = self._slots.setdefault(service, {})
        if (before := slots.pop(slot, None)) is not None:
            self._count(before, -1, emptied)
            self._forget_ended(before.info.id, claim)
        self._end_loss(service, slot, emptied)
        if claim is not None:
            slots[slot] = claim
            self._count(claim, 1, emptied)
        elif before is not None and lost_until is not None:
            self._lost.setdefault(service, {})[slot] = before.host
            self._lost_claims[service, slot] = LostClaim(before, lost_until)
            self._count(before, 1, emptied)
        if unreadable:
            self._unreadable.setdefault(service, set()).add(slot)
        else:
            remove_slot(self._unreadable, service, slot)
        if not slots:
            del self._slots[service]
        self._slot_index.slot_changed(service, slot, before, claim)
        return SlotChange(before, emptied)

    def set_unreadable_slots(self, slots: Iterable[tuple[str, int]]) -> None:
        """Exactly these slots have an unreadable record."""
        self._unreadable.clear()
        for service, slot in slots:
            self._unreadable.setdefault(service, set()).add(slot)

    def expire_lost_claims(self, now: float) -> tuple[list[str], list[str]]:
        """Free the slots whose lost claims have run out: their services, and the hosts emptied."""
        expired = [key for key, lost in self._lost_claims.items() if lost.until <= now]
        emptied: list[str] = []
        for service, slot in expired:
            self._end_loss(service, slot, emptied)
        return [service for service, _ in expired], emptied

    def services_affected_by_room(self) -> set[str]:
        """The services whose plans may change when room is taken or freed on some host."""
        return self._slot_index.affected_by_room(self.state.draining())

    def _count(self, claim: SlotRecord, times: int, emptied: list[str]) -> None:
        host = claim.host
        if host in self._orders:
            self._capacity_cache.hosts_changed()  # a cordoned host counts for what it holds
        self._used[host] = self._used.get(host, 0) + times
        self._reserved[host] = self._reserved.get(host, NOTHING).plus(claim.demand, times)
        if not self._used[host]:
            del self._used[host], self._reserved[host]
            emptied.append(host)

    def _end_loss(self, service: str, slot: int, emptied: list[str]) -> None:
        if (lost := self._lost_claims.pop((service, slot), None)) is not None:
            self._count(lost.claim, -1, emptied)
            del self._lost[service][slot]
            if not self._lost[service]:
                del self._lost[service]

    # ── hosts ────────────────────────────────────────────────────────────────────────────

    def set_host(self, name: str, record: HostRecord | None, *, unreadable: bool = False) -> None:
        """The live host's record is `record` now; None if it is not live, or `unreadable`."""
        mark(self._unreadable_hosts, name, unreadable)
        before = self._hosts.pop(name, None)
        if record is not None:
            self._hosts[name] = record
        self._capacity_cache.hosts_changed()
        self._slot_index.host_changed(name, before, record)

    def set_dead(self, hosts: AbstractSet[str]) -> bool:
        """Exactly these hosts are dead; whether that is a change."""
        changed = hosts ^ self._dead
        self._dead.symmetric_difference_update(changed)
        self._slot_index.deaths_changed(changed)
        return bool(changed)

    def set_order(self, host: str, order: HostOrder | None) -> None:
        """The order in force for `host`, None if there is none."""
        _put(self._orders, host, order)
        self._capacity_cache.hosts_changed()

    # ── instances ────────────────────────────────────────────────────────────────────────

    def set_stats(self, host: str, stats: HostStats) -> None:
        """What `host` reports of its instances; {} if it is gone."""
        for instance_id in self._stats.get(host, {}).keys() - stats.keys():
            self._loads.pop(instance_id, None)
        self._loads.update(stats)
        if stats:
            self._stats[host] = stats
        else:
            self._stats.pop(host, None)

    def set_own_instance(self, info: InstanceInfo) -> None:
        """An instance of this host as it is now, ahead of its record."""
        self._own_instances[info.id] = info

    def end_own_instance(self, service: str, slot: int, instance_id: str) -> None:
        """The instance has ended and its publication is complete.

        It stays known while the record of its slot says that it lives, which may last until its
        successor's record is written: this host knows better.
        """
        if not _shows_alive(self._slots.get(service, {}).get(slot), instance_id):
            self._own_instances.pop(instance_id, None)

    def _forget_ended(self, instance_id: str, claim: SlotRecord | None) -> None:
        info = self._own_instances.get(instance_id)
        if info is not None and info.state in ENDED and not _shows_alive(claim, instance_id):
            del self._own_instances[instance_id]


def _shows_alive(claim: SlotRecord | None, instance_id: str) -> bool:
    return claim is not None and claim.info.id == instance_id and claim.info.state not in ENDED


def _put(mapping: dict[K, V], key: K, value: V | None) -> None:
    if value is None:
        mapping.pop(key, None)
    else:
        mapping[key] = value
