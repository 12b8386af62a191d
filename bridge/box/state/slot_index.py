"""What there is of each service, sorted as deciders ask for it: free slots, those outside the set,
by host, by config. Pure.

A fleet is large and a change is small. Each change is sorted in once, so that what a Box does about
it grows with what changed, not with what is there. `ServiceSlots.of` says the same from records
alone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import TypeVar

from bridge.box.state.lifecycle import ENDED, SERVING
from bridge.box.state.records import HostRecord, ServiceRecord, SlotRecord

K = TypeVar("K")

Holder = tuple[str, str]
"""A host and the id of its data directory: who claims slots."""


class ServiceSlots:
    """The slots of one service.

    `wanted` is its set; `free` are those of it that nobody claims, `outside` the claims that are
    not in it, `unready` those of it in which nothing serves. `held` has the claims of each holder,
    `hosts` counts them by host, `made` has those in which an instance lives, by its config.
    `config` names what the record has now.
    """

    def __init__(self) -> None:
        self.wanted: set[int] = set()
        self.free: set[int] = set()
        self.outside: set[int] = set()
        self.unready: set[int] = set()
        self.held: defaultdict[Holder, set[int]] = defaultdict(set)
        self.made: defaultdict[str, set[int]] = defaultdict(set)
        self.hosts: Counter[str] = Counter()
        self.config = ""

    @classmethod
    def of(cls, record: ServiceRecord | None, claims: Mapping[int, SlotRecord]) -> ServiceSlots:
        """The tally of a service that is as the records say."""
        tally = cls()
        tally.want(record, {})
        for slot, claim in claims.items():
            tally.change(slot, None, claim)
        return tally

    def want(self, record: ServiceRecord | None, claims: Mapping[int, SlotRecord]) -> None:
        """The service's record is this now; `claims` are those that were told already."""
        before, self.wanted = self.wanted, set(record.slots) if record else set()
        self.config = record.config_id if record else ""
        for slot in before ^ self.wanted:
            self._sort(slot, claims.get(slot))

    def change(self, slot: int, old: SlotRecord | None, new: SlotRecord | None) -> None:
        """The claim of `slot` was `old`, and is `new`."""
        if old is not None:
            _take_out(self.held, (old.host, old.host_id), slot)
            _take_out(self.made, old.config, slot)
            self.hosts[old.host] -= 1
            if not self.hosts[old.host]:
                del self.hosts[old.host]
        if new is not None:
            self.held[new.host, new.host_id].add(slot)
            self.hosts[new.host] += 1
            if new.info.state not in ENDED:
                self.made[new.config].add(slot)
        self._sort(slot, new)

    def outdated_config(self) -> set[int]:
        """The claims in which an instance lives that the record's config did not make."""
        others = (slots for name, slots in self.made.items() if name != self.config)
        return set[int]().union(*others)

    def on(self, host: str) -> set[int]:
        """The claims of `host`, and of dead ones of its name."""
        if host not in self.hosts:
            return set()
        there = (slots for (name, _), slots in self.held.items() if name == host)
        return set[int]().union(*there)

    @property
    def settled(self) -> bool:
        """Whether every slot of the set is claimed, nothing else is, and all are of one config."""
        return not (self.free or self.outside or self.made.keys() - {self.config})

    def _sort(self, slot: int, claim: SlotRecord | None) -> None:
        wanted = slot in self.wanted
        for kind, belongs in (
            (self.free, wanted and claim is None),
            (self.outside, not wanted and claim is not None),
            (self.unready, wanted and (claim is None or claim.info.state not in SERVING)),
        ):
            if belongs:
                kind.add(slot)
            else:
                kind.discard(slot)


class SlotIndex:
    """The tallies of a fleet, kept current: whoever changes one of the mappings it was made with
    tells it. Nothing else may change them.

    `ghosts` are the dead who hold slots, `housed` counts the claims of each host by service,
    `restless` are the services for which it matters where room is.
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
        self._ids: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.services: defaultdict[str, ServiceSlots] = defaultdict(ServiceSlots)
        self.dead_holders: set[Holder] = set()
        self.slot_counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.unsettled: set[str] = set()

    def service_changed(self, service: str) -> None:
        """The service's record is another."""
        self.services[service].want(self._services.get(service), self._slots.get(service, {}))
        self._weigh(service)

    def slot_changed(
        self, service: str, slot: int, old: SlotRecord | None, new: SlotRecord | None
    ) -> None:
        """A claim came, changed, or went."""
        self.services[service].change(slot, old, new)
        for claim, times in ((old, -1), (new, 1)):
            if claim is not None:
                _count(self.slot_counts, claim.host, service, times)
                _count(self._ids, claim.host, claim.host_id, times)
                self._judge(claim.host, claim.host_id)
        self._weigh(service)

    def hosts_changed(self, names: Iterable[str]) -> None:
        """These hosts live, live no more, are dead or are so no more, or have another id."""
        for name in names:
            for host_id in self._ids.get(name, ()):
                self._judge(name, host_id)

    def affected_by_room(self, draining: Iterable[str]) -> set[str]:
        """The services whose plans may change because room came or went somewhere, while these
        hosts are being drained.
        """
        leaving = {*draining, *(host for host, _ in self.dead_holders)}
        return self.unsettled.union(*(self.slot_counts.get(host, ()) for host in leaving))

    def _judge(self, host: str, host_id: str) -> None:
        if host_id in self._ids.get(host, ()) and is_gone(host, host_id, self._hosts, self._dead):
            self.dead_holders.add((host, host_id))
        else:
            self.dead_holders.discard((host, host_id))

    def _weigh(self, service: str) -> None:
        record, tally = self._services.get(service), self.services[service]
        if record is not None and not (tally.settled and record.settled):
            self.unsettled.add(service)
        else:
            self.unsettled.discard(service)


def is_gone(
    host: str, host_id: str, hosts: Mapping[str, HostRecord], dead: AbstractSet[str]
) -> bool:
    """Whether a holder is dead: the host, or its earlier self, whose data directory is gone."""
    if (there := hosts.get(host)) is not None:
        return there.host_id != host_id
    return host in dead


def _take_out(groups: dict[K, set[int]], name: K, slot: int) -> None:
    if (found := groups.get(name)) is not None:
        found.discard(slot)
        if not found:
            del groups[name]


def _count(counts: defaultdict[str, Counter[str]], outer: str, inner: str, times: int) -> None:
    found = counts[outer]
    found[inner] += times
    if not found[inner]:
        del found[inner]
        if not found:
            del counts[outer]
