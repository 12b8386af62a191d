"""The state of the fleet that a decision reads: records, hosts, slots and orders. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Final

from msgspec import Struct, field
from msgspec.structs import force_setattr, replace

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

_NO_INDEX: Final = SlotIndex({}, {}, {}, frozenset())


class FleetState(Struct, frozen=True, kw_only=True):
    """All facts that a decision may use. Decisions read the mappings and never write to them.

    - `services`: the records of the services; `unreadable_services` have one that cannot be read.
    - `hosts`: the live hosts; `unreadable_hosts` are live too, but nothing is placed on them;
      `dead` are those whose slots may be taken over; `orders` are those of operators, by host.
    - `slots`: the claimed slots of each service, whether or not they are in its set; `unreadable`
      are slots whose record cannot be read: they are neither claimed nor free.
    - `lost`: the host of each slot whose record the store has lost. The host may claim the slot
      again, and the slot counts as held until then.
    - `used`: how many slots each host has; `reserved`: the sum of what their instances demand.
    - `loads`: the newest health reports of all hosts; `own_instances`: this host's own instances, a
      moment ahead of their records; both by instance id.
    - `slot_index`: the slots and offers, sorted; `capacity_cache`: the cached capacity of hosts.
    """

    services: Mapping[str, ServiceRecord] = field(default_factory=dict)
    hosts: Mapping[str, HostRecord] = field(default_factory=dict)
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
    own_instances: Mapping[str, InstanceInfo] = field(default_factory=dict)
    slot_index: SlotIndex = _NO_INDEX
    capacity_cache: CapacityCache = NO_CACHE

    def __post_init__(self) -> None:
        """Make an index where the one given does not index these very mappings."""
        mappings = self.services, self.slots, self.hosts, self.dead
        if not self.slot_index.is_of(*mappings):
            force_setattr(self, "slot_index", SlotIndex(*mappings))

    def slots_of(self, service: str) -> Mapping[int, SlotRecord]:
        """The claimed slots of `service`."""
        return self.slots.get(service, {})

    def service_slots(self, service: str) -> ServiceSlots:
        """The slots of `service`, sorted; to be read before anything changes."""
        return self.slot_index.services.get(service) or ServiceSlots()

    def is_listed(self, service: str) -> bool:
        """Whether a live host lists `service`."""
        return bool(self.offering(service)) or any(
            service in host.services for host in self.hosts.values()
        )

    def offering(self, service: str, *, on_request: bool = False) -> Mapping[str, HostRecord]:
        """The live hosts that list `service` and are not about to leave. With `on_request` also
        those that admit images.
        """
        hosts = self.slot_index.offers.get(service, {})
        if not on_request:
            return hosts
        admitting = {n: host for n, host in self.hosts.items() if host.images and not host.closing}
        return {**hosts, **admitting}

    def is_orphan(self, record: SlotRecord) -> bool:
        """Whether the holder of the slot is dead: its host, or an earlier host of that name, whose
        data directory is gone.
        """
        return is_gone(record.host, record.host_id, self.hosts, self.dead)

    def orphans(self, service: str) -> set[int]:
        """The claimed slots of `service` whose holders are dead."""
        by_holder = self.service_slots(service).by_holder
        dead = self.slot_index.dead_holders & by_holder.keys()
        return set[int]().union(*(by_holder[holder] for holder in dead))

    def may_be_held(self, service: str, slot: int) -> bool:
        """Whether the host of the instance in the slot should claim it: the slot is in the set, or
        the store has lost its claim, and maybe the set as well.
        """
        return slot in self.service_slots(service).wanted or slot in self.lost.get(service, {})

    def vacant(self, service: str) -> set[int]:
        """The slots of the set that a host should claim: the free ones, and those of dead hosts."""
        slots = self.service_slots(service)
        free = slots.free | (self.orphans(service) & slots.wanted)
        return free - self.unreadable.get(service, frozenset())

    def slot_counts(self, host: str) -> Mapping[str, int]:
        """How many slots of which services `host` has, or a dead host of that name."""
        return self.slot_index.slot_counts.get(host, {})

    def draining(self) -> list[str]:
        """The hosts that are being drained."""
        return [name for name, order in self.orders.items() if order.draining]

    def latest(self, record: SlotRecord) -> InstanceInfo:
        """The instance of a slot in its newest known state."""
        info = record.info
        if (own := self.own_instances.get(info.id)) is not None:
            return own
        load = self.loads.get(info.id)
        if load is None:
            return info
        return replace(info, health=replace(load, healthy=info.health.healthy))

    def free_slots(self, service: str, count: int, *, beside: AbstractSet[int]) -> list[int]:
        """The `count` lowest slots that are neither claimed nor in `beside`."""
        taken = beside | self.slots_of(service).keys() | self.unreadable.get(service, frozenset())
        numbers = (number for number in itertools.count() if number not in taken)
        return list(itertools.islice(numbers, count))
