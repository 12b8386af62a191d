"""The slots and offers of a fleet, sorted for decisions: free slots, slots outside the set, by
holder, by config. Pure.

A fleet is large and a change is small. Each change is sorted in once, so that the work of a Box
grows with what changed and not with the size of the fleet.
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import TypeVar

from bridge.box.state.age_order import AgeOrder
from bridge.box.state.lifecycle import ENDED, SERVING
from bridge.box.state.records import HostRecord, ServiceRecord, SlotRecord

K = TypeVar("K")

Holder = tuple[str, str]
"""A host and the id of its data directory: the owner of a claim."""


class ServiceSlots:
    """The slots of one service.

    - `wanted`: its set; `free`: those of the set without a claim; `unready`: those of the set
      without a serving instance; `outside`: claimed slots that are not in the set.
    - `by_holder`: the claimed slots of each holder; `hosts` counts them by host.
    - `by_config`: the slots with a living instance, by the config it was made with.
    - `config`: the name of the record's config.
    - `stale`: the slots whose living instance was made from other settings than its host has now.
    """

    def __init__(self) -> None:
        self.wanted: set[int] = set()
        self.free: set[int] = set()
        self.outside: set[int] = set()
        self.unready: set[int] = set()
        self.by_holder: defaultdict[Holder, set[int]] = defaultdict(set)
        self.by_config: defaultdict[str, set[int]] = defaultdict(set)
        self.hosts: Counter[str] = Counter()
        self.config = ""
        self.stale: set[int] = set()

    @classmethod
    def of(cls, record: ServiceRecord | None, claims: Mapping[int, SlotRecord]) -> ServiceSlots:
        """The slots of a service with this record and these claims."""
        slots = cls()
        slots.set_record(record, {})
        for slot, claim in claims.items():
            slots.set_claim(slot, None, claim)
        return slots

    def set_record(self, record: ServiceRecord | None, claims: Mapping[int, SlotRecord]) -> None:
        """Take over a new record of the service, whose `claims` are already sorted in."""
        before, self.wanted = self.wanted, set(record.slots) if record else set()
        self.config = record.config_id if record else ""
        for slot in before ^ self.wanted:
            self._sort(slot, claims.get(slot))

    def set_claim(self, slot: int, before: SlotRecord | None, after: SlotRecord | None) -> None:
        """Take over a change of the claim of `slot`."""
        if before is not None:
            remove_slot(self.by_holder, (before.host, before.host_id), slot)
            remove_slot(self.by_config, before.config, slot)
            self.hosts[before.host] -= 1
            if not self.hosts[before.host]:
                del self.hosts[before.host]
        if after is not None:
            self.by_holder[after.host, after.host_id].add(slot)
            self.hosts[after.host] += 1
            if after.info.state not in ENDED:
                self.by_config[after.config].add(slot)
        self._sort(slot, after)

    def outdated_config(self) -> set[int]:
        """The slots whose living instance was made with another config than the record's, or from
        other settings than those of its host.
        """
        others = (slots for name, slots in self.by_config.items() if name != self.config)
        return self.stale.union(*others)

    def on(self, host: str) -> set[int]:
        """The claimed slots of `host`, and of dead hosts with its name."""
        if host not in self.hosts:
            return set()
        claimed = (slots for (name, _), slots in self.by_holder.items() if name == host)
        return set[int]().union(*claimed)

    @property
    def settled(self) -> bool:
        """Whether all slots of the set, and no others, are claimed, and all are of one config."""
        return not (
            self.free or self.outside or self.stale or self.by_config.keys() - {self.config}
        )

    def _sort(self, slot: int, claim: SlotRecord | None) -> None:
        wanted = slot in self.wanted
        for kind, belongs in (
            (self.free, wanted and claim is None),
            (self.outside, not wanted and claim is not None),
            (self.unready, wanted and (claim is None or claim.info.state not in SERVING)),
        ):
            mark(kind, slot, belongs)


class SlotIndex:
    """The slots of each service and the hosts that offer it.

    Code that changes one of the mappings reports each change here.

    - `services`: the slots of each service; `unsettled`: the services whose plans depend on where
      there is room.
    - `offers`: by service, the live hosts that list it and are not about to leave.
    - `slot_counts`: by host, how many slots of which services it has.
    - `dead_holders`: the holders of claims that are dead.
    - `age_order`: the instances, oldest first.
    """

    def __init__(
        self,
        services: Mapping[str, ServiceRecord],
        slots: Mapping[str, Mapping[int, SlotRecord]],
        hosts: Mapping[str, HostRecord],
        dead: AbstractSet[str],
    ) -> None:
        self._services = services
        self._slots = slots
        self._hosts = hosts
        self._dead = dead
        self._host_ids: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.services: defaultdict[str, ServiceSlots] = defaultdict(ServiceSlots)
        self.offers: dict[str, dict[str, HostRecord]] = {}
        self.dead_holders: set[Holder] = set()
        self.slot_counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.unsettled: set[str] = set()
        self.age_order = AgeOrder(slots)
        for host, record in hosts.items():
            self.host_changed(host, None, record)
        for service in services:
            self.service_changed(service)
        for service, claims in slots.items():
            for slot, claim in claims.items():
                self.slot_changed(service, slot, None, claim)

    def is_of(
        self,
        services: Mapping[str, ServiceRecord],
        slots: Mapping[str, Mapping[int, SlotRecord]],
        hosts: Mapping[str, HostRecord],
        dead: AbstractSet[str],
    ) -> bool:
        """Whether it indexes these very mappings."""
        return (
            services is self._services
            and slots is self._slots
            and hosts is self._hosts
            and dead is self._dead
        )

    def with_services(self, services: Mapping[str, ServiceRecord], changed: str) -> SlotIndex:
        """An index of `services`, in which one record has changed. This one must not change while
        the other is in use.
        """
        index = copy.copy(self)
        index._services = services  # noqa: SLF001
        slots = ServiceSlots.of(services.get(changed), self._slots.get(changed, {}))
        if (current := self.services.get(changed)) is not None:
            slots.stale = set(current.stale)
        index.services = defaultdict(ServiceSlots, {**self.services, changed: slots})
        return index

    def service_changed(self, service: str) -> None:
        """The service's record has changed."""
        claims = self._slots.get(service, {})
        self.services[service].set_record(self._services.get(service), claims)
        self._mark_settled(service)

    def slot_changed(
        self, service: str, slot: int, before: SlotRecord | None, after: SlotRecord | None
    ) -> None:
        """The claim of a slot has come, changed or gone."""
        self.services[service].set_claim(slot, before, after)
        self._mark_stale(service, slot, after)
        self.age_order.slot_changed(service, slot, before, after)
        for claim, times in ((before, -1), (after, 1)):
            if claim is not None:
                _count(self.slot_counts, claim.host, service, times)
                _count(self._host_ids, claim.host, claim.host_id, times)
                self._mark_dead(claim.host, claim.host_id)
        self._mark_settled(service)

    def host_changed(self, name: str, before: HostRecord | None, after: HostRecord | None) -> None:
        """The record of a live host has come, changed or gone."""
        for service in before.services if before and not before.closing else ():
            del self.offers[service][name]
            if not self.offers[service]:
                del self.offers[service]
        if after is not None and not after.closing:
            for service in after.services:
                self.offers.setdefault(service, {})[name] = after
        for service in _with_other_settings(before, after):
            self._mark_all_stale(service, name)
        self.deaths_changed([name])

    def deaths_changed(self, hosts: Iterable[str]) -> None:
        """These hosts are dead now, or are not any more."""
        for host in hosts:
            for host_id in self._host_ids.get(host, ()):
                self._mark_dead(host, host_id)

    def affected_by_room(self, draining: Iterable[str]) -> set[str]:
        """The services whose plans may change when room is taken or freed somewhere, while these
        hosts are being drained.
        """
        leaving = {*draining, *(host for host, _ in self.dead_holders)}
        return self.unsettled.union(*(self.slot_counts.get(host, ()) for host in leaving))

    def _mark_all_stale(self, service: str, host: str) -> None:
        if service in self.services:
            for slot in self.services[service].on(host):
                self._mark_stale(service, slot, self._slots[service].get(slot))
            self._mark_settled(service)

    def _mark_stale(self, service: str, slot: int, claim: SlotRecord | None) -> None:
        stale = claim is not None and _is_stale(service, claim, self._hosts.get(claim.host))
        mark(self.services[service].stale, slot, stale)

    def _mark_dead(self, host: str, host_id: str) -> None:
        holds = host_id in self._host_ids.get(host, ())
        gone = holds and is_gone(host, host_id, self._hosts, self._dead)
        mark(self.dead_holders, (host, host_id), gone)

    def _mark_settled(self, service: str) -> None:
        record, slots = self._services.get(service), self.services[service]
        if record is None and not slots.hosts:
            del self.services[service]
        settled = record is None or (slots.settled and record.settled)
        mark(self.unsettled, service, not settled)


def is_gone(
    host: str, host_id: str, hosts: Mapping[str, HostRecord], dead: AbstractSet[str]
) -> bool:
    """Whether a holder is dead: its host, or an earlier one of that name, whose data directory is
    gone.
    """
    if (live := hosts.get(host)) is not None:
        return live.host_id != host_id
    return host in dead


def _with_other_settings(before: HostRecord | None, after: HostRecord | None) -> set[str]:
    """The services whose settings on a host differ between two records of it."""
    old, new = (
        {name: offer.settings for name, offer in record.services.items()} if record else {}
        for record in (before, after)
    )
    return {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}


def _is_stale(service: str, claim: SlotRecord, host: HostRecord | None) -> bool:
    """Whether the living instance of `claim` was made from other settings than its `host` has."""
    if host is None or host.host_id != claim.host_id or claim.info.state in ENDED:
        return False
    now = host.services[service].settings if service in host.services else ""
    return "" not in (now, claim.settings) and now != claim.settings


def mark(members: set[K], key: K, belongs: bool) -> None:
    """Add `key` to `members` if it `belongs` to them; otherwise remove it."""
    if belongs:
        members.add(key)
    else:
        members.discard(key)


def remove_slot(groups: dict[K, set[int]], name: K, slot: int) -> None:
    """Remove `slot` from the group `name`, and an empty group from `groups`."""
    if (slots := groups.get(name)) is not None:
        slots.discard(slot)
        if not slots:
            del groups[name]


def _count(counts: defaultdict[str, Counter[str]], outer: str, inner: str, times: int) -> None:
    counter = counts[outer]
    counter[inner] += times
    if not counter[inner]:
        del counter[inner]
        if not counter:
            del counts[outer]
