"""The state of the fleet that a decision reads: records, hosts, slots and orders. Pure."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from msgspec import Struct, field
from msgspec.structs import replace

from bridge.box.state.capacity_cache import NO_CACHE, CapacityCache
from bridge.box.state.records import (
    Demand,
    HostOrder,
    HostRecord,
    ServiceRecord,
    SlotRecord,
)
from bridge.box.state.slot_index import ServiceSlots, SlotIndex, is_gone
from bridge.protocol import InstanceHealth, InstanceInfo


class FleetState(Struct, frozen=True, kw_only=True):
    """All that a decision may look at. The mappings are read, never written, by deciders.

    `hosts` are the live ones, `offers` those of them that are not about to leave, by the services
    that they list; None means that nobody has sorted them. `slots` has the claimed slots of each
    service, in its set or not; `unreadable` those whose record cannot be read,
    `unreadable_services` the services of which that is so: neither is there, but nor is it free.
    `unreadable_hosts` live, as their leases say, but not for what others may place on them.
    `lost` names the host that held a slot whose record the store has lost: it is that host's to
    claim again, and counts as held until then. `dead` are the hosts whose slots may be taken over,
    `orders` what operators have ordered, by host. `used` counts the slots that a host holds,
    `reserved` sums what their instances are to have. `loads` are the newest health reports of all
    hosts, `lives` this host's own instances as they are, a moment ahead of their records; both by
    instance id. `slot_index` has the slots sorted; without one each query sorts them again.
    `capacity_cache` keeps the capacity of hosts for services until something changes it.
    """

    services: Mapping[str, ServiceRecord] = field(default_factory=dict)
    hosts: Mapping[str, HostRecord] = field(default_factory=dict)
    offers: Mapping[str, Mapping[str, HostRecord]] | None = None
    slots: Mapping[str, Mapping[int, SlotRecord]] = field(default_factory=dict)
    unreadable: Mapping[str, AbstractSet[int]] = field(default_factory=dict)
    unreadable_services: AbstractSet[str] = frozenset()
    unreadable_hosts: AbstractSet[str] = frozenset()
    lost: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    dead: AbstractSet[str] = frozenset()
    orders: Mapping[str, HostOrder] = field(default_factory=dict)
    used: Mapping[str, int] = field(default_factory=dict)
    reserved: Mapping[str, Demand] = field(default_factory=dict)
    loads: Mapping[str, InstanceHealth] = field(default_factory=dict)
    lives: Mapping[str, InstanceInfo] = field(default_factory=dict)
    slot_index: SlotIndex | None = None
    capacity_cache: CapacityCache = NO_CACHE

    def slots_of(self, service: str) -> Mapping[int, SlotRecord]:
        """The claimed slots of `service`."""
        return self.slots.get(service, {})

    def service_slots(self, service: str) -> ServiceSlots:
        """The slots of `service`, sorted; to be read before anything changes."""
        if self.slot_index is not None:
            return self.slot_index.services.get(service) or ServiceSlots()
        return ServiceSlots.of(self.services.get(service), self.slots_of(service))

    def is_listed(self, service: str) -> bool:
        """Whether a live host lists `service`."""
        return bool(self.offering(service)) or any(
            service in host.services for host in self.hosts.values()
        )

    def offering(self, service: str, *, on_request: bool = False) -> Mapping[str, HostRecord]:
        """The live hosts that list `service` and are not about to leave; of one that a request has
        made, those as well that admit images.
        """
        hosts = self._offering(service)
        if not on_request:
            return hosts
        admitting = {n: host for n, host in self.hosts.items() if host.images and not host.closing}
        return {**hosts, **admitting}

    def _offering(self, service: str) -> Mapping[str, HostRecord]:
        if self.offers is not None:
            return self.offers.get(service, {})
        return {
            name: host
            for name, host in self.hosts.items()
            if service in host.services and not host.closing
        }

    def is_orphan(self, record: SlotRecord) -> bool:
        """Whether who holds the slot is dead: its host, or that host's earlier self, whose data
        directory is gone.
        """
        return is_gone(record.host, record.host_id, self.hosts, self.dead)

    def orphans(self, service: str) -> set[int]:
        """The claimed slots of `service` whose holders are dead."""
        held = self.service_slots(service).held
        if self.slot_index is not None:
            gone = self.slot_index.dead_holders & held.keys()
        else:
            gone = {holder for holder in held if is_gone(*holder, self.hosts, self.dead)}
        return set[int]().union(*(held[holder] for holder in gone))

    def is_to_be_held(self, service: str, slot: int) -> bool:
        """Whether who lives in the slot is to claim it: it is in the set, or the store has lost its
        claim, and maybe the set as well.
        """
        return slot in self.service_slots(service).wanted or slot in self.lost.get(service, {})

    def vacant(self, service: str) -> set[int]:
        """The slots of the set that somebody should claim: free ones, and those of the dead."""
        tally = self.service_slots(service)
        free = tally.free | (self.orphans(service) & tally.wanted)
        return free - self.unreadable.get(service, frozenset())

    def slot_counts(self, host: str) -> Mapping[str, int]:
        """How many slots of which services `host` holds, or a dead one of its name."""
        if self.slot_index is not None:
            return self.slot_index.slot_counts.get(host, {})
        claims = (
            service
            for service, found in self.slots.items()
            for claim in found.values()
            if claim.host == host
        )
        return Counter(claims)

    def draining(self) -> list[str]:
        """The hosts that are being drained."""
        return [name for name, order in self.orders.items() if order.draining]

    def latest(self, record: SlotRecord) -> InstanceInfo:
        """The instance of a slot as it is now, as far as anybody here knows."""
        info = record.info
        if (own := self.lives.get(info.id)) is not None:
            return own
        load = self.loads.get(info.id)
        if load is None:
            return info
        return replace(info, health=replace(load, healthy=info.health.healthy))

    def free_slots(self, service: str, count: int, *, beside: AbstractSet[int]) -> list[int]:
        """The `count` lowest slots that are in no set, claimed by nobody and not `beside`."""
        taken = beside | self.slots_of(service).keys() | self.unreadable.get(service, frozenset())
        numbers = (number for number in itertools.count() if number not in taken)
        return list(itertools.islice(numbers, count))
