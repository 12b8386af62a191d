"""Which hosts can run a service, and which of them should take a slot. Pure.

Every Box gives the same answer from the same records. Of the hosts with room it is one on which
there is what the instance is to have, of these the one with the most room, then the one with the
fewest instances of the service, then the first by name. Nothing moves because a host joined: only
free slots are placed.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Final

from bridge.box.state.fleet_state import FleetState
from bridge.box.state.records import (
    NO_OFFER,
    NOTHING,
    Demand,
    HostRecord,
    Offer,
    ServiceRecord,
    SlotRecord,
)
from bridge.box.state.runtime_limits import fixed_port, refusal
from bridge.images import admits, same_image
from bridge.protocol import ScaleConfig

Rank = tuple[bool, int, int, str]
"""Where a host stands: the first of all takes the next slot. Its name comes last."""

_NONE: Final = (True, 0, 0, "")


def able_hosts(
    service: str, fleet: FleetState, record: ServiceRecord
) -> tuple[dict[str, HostRecord], dict[str, str]]:
    """The live hosts that can run `service` as `record` has it, cordoned ones too; and of those
    that offer it, why the others cannot.
    """
    able, why_not = {}, {}
    refused: dict[tuple[object, ...], str] = {}  # most hosts are alike
    for name, host in fleet.offering(service, on_request=record.on_request).items():
        offer = host.services.get(service)
        kind = host.runtime, host.cpus, host.images, *host.lacks.items(), offer and offer.image
        if kind not in refused:
            refused[kind] = _refused(service, host, record.config)
        if why := _mislabelled(service, host, record.config) or refused[kind]:
            why_not[name] = why
        else:
            able[name] = host
    return able, why_not


def unfit(service: str, host: HostRecord, config: ScaleConfig) -> str:
    """Why a host that offers `service` cannot run it with `config`; empty if it can. One that does
    not list it offers to make it from an image.
    """
    return _mislabelled(service, host, config) or _refused(service, host, config)


def _mislabelled(service: str, host: HostRecord, config: ScaleConfig) -> str:
    offer = host.services.get(service)
    if offer is None and not config.image:
        return "it does not list the service, and no image is named for it"
    return _missing(offer, host) if offer else ""


def _missing(offer: Offer, host: HostRecord) -> str:
    """What label the host of `offer` lacks for it; empty if none."""
    for label, value in offer.needs.items():
        if (found := host.labels.get(label)) != value:
            return f"it needs a host with {label} = {value!r}, not {found!r}"
    return ""


def _refused(service: str, host: HostRecord, config: ScaleConfig) -> str:
    if why := refusal(host.runtime, config, cpus=host.cpus, lacks=host.lacks):
        return why
    offer = host.services.get(service)
    image, configured = config.image, offer.image if offer else ""
    if not image or same_image(image, configured) or admits(host.images, image):
        return ""
    return f"image {image[:120]!r} is not admitted by its [box] allow_images"


def rivals(fleet: FleetState, able: Mapping[str, HostRecord]) -> set[str]:
    """The services that could use the hosts `able`: those that they list and have the labels for,
    and those made by requests whose image one of them admits; what cannot be read may be one of
    these. What their configs ask for is no matter: a request may change that, and keeps the target.
    """
    found = set[str]()
    for host in able.values():
        for name, offer in host.services.items():
            if name not in found and not _missing(offer, host):
                found.add(name)
    if patterns := {host.images for host in able.values() if host.images}:
        found |= fleet.unreadable_services
        found |= {
            name
            for name, record in fleet.services.items()
            if record.on_request and any(admits(own, record.config.image or "") for own in patterns)
        }
    return found


def host_port(config: ScaleConfig, host: HostRecord, service: str) -> int:
    """The host port that an instance of `service` on `host` is bound to; 0 if to none."""
    if config.port_map:
        return fixed_port(config.port_map)
    return host.services.get(service, NO_OFFER).fixed_port


def demand(config: ScaleConfig, host: HostRecord, service: str) -> Demand:
    """What an instance of `service` with `config` is to have of `host`."""
    usual = host.services.get(service, NO_OFFER).demand
    return Demand.of(config.vcpus, config.memory_mib, usual)


def room(name: str, host: HostRecord, fleet: FleetState) -> int:
    """How many more instances the host may take: none while it is cordoned, or not ready."""
    if name in fleet.orders or not host.ready:
        return 0
    return host.max_instances - fleet.used.get(name, 0)


def first_at_work(hosts: Mapping[str, HostRecord]) -> str:
    """Who of `hosts` does what one of them has to: the first that is ready; "" if none is."""
    return min((name for name, host in hosts.items() if host.ready), default="")


def capacity(name: str, host: HostRecord, fleet: FleetState) -> int:
    """How many instances the host counts for in a decision: a cordoned one for those that it has;
    one that is being drained for none, as their room elsewhere must not be promised to others.
    """
    order = fleet.orders.get(name)
    return holds(name, host, fleet) if order is None or not order.draining else 0


def holds(name: str, host: HostRecord, fleet: FleetState) -> int:
    """How many instances the host can have as things are: a cordoned one those that it has, and on
    its way back a host may have more than it should.
    """
    if name not in fleet.orders:
        return host.max_instances
    return min(fleet.used.get(name, 0), host.max_instances)


def place(
    service: str,
    fleet: FleetState,
    record: ServiceRecord,
    free: Iterable[int],
    *,
    at: datetime,
) -> dict[int, str]:
    """Which host should take each of the `free` slots at `at`; those for which there is no room
    are not in the result.
    """
    free = sorted(free)
    if not free:
        return {}  # the usual case, and a board costs a look at each host
    hosts = fleet.offering(service, on_request=record.on_request)
    return Placement(service, fleet, record, HostRoom(fleet, hosts)).place(
        free, avoided(record, at)
    )


def avoided(record: ServiceRecord, at: datetime) -> dict[int, set[str]]:
    """The hosts that slots must not be placed on at `at`, by slot."""
    found: dict[int, set[str]] = {}
    for item in record.avoid:
        if item.until > at:
            found.setdefault(item.slot, set()).add(item.host)
    return found


class HostRoom:
    """What each of `hosts`, else of all, has left, and what its instances are to have, while slots
    are being placed; boards of several services may share one.
    """

    def __init__(self, fleet: FleetState, hosts: Mapping[str, HostRecord] | None = None) -> None:
        hosts = fleet.hosts if hosts is None else hosts
        self.room = {name: room(name, host, fleet) for name, host in hosts.items()}
        self.reserved = {name: fleet.reserved.get(name, NOTHING) for name in hosts}


class Placement:
    """Where slots of one service can go while they are being placed; `able` are the hosts that can
    run it, if that is known.
    """

    def __init__(
        self,
        service: str,
        fleet: FleetState,
        record: ServiceRecord,
        spare: HostRoom,
        able: Mapping[str, HostRecord] | None = None,
    ) -> None:
        self._hosts = able_hosts(service, fleet, record)[0] if able is None else able
        self._spare = spare
        needs = ((name, demand(record.config, host, service)) for name, host in self._hosts.items())
        self._needs = {name: wish for name, wish in needs if wish != NOTHING}
        self._fixed = {
            name for name, host in self._hosts.items() if host_port(record.config, host, service)
        }
        self._own = Counter(fleet.service_slots(service).hosts)

    def best(self) -> str:
        """The host that should take the next slot; "" if there is none."""
        return min(self._ranks(), default=_NONE)[-1]

    def place(self, slots: Iterable[int], off: Mapping[int, Container[str]]) -> dict[int, str]:
        """One after the other, each of `slots` is taken by the host that should, of those that it
        is not kept `off`; those for which there is no room are not in the result.
        """
        if off or self._needs or self._fixed:
            return self._one_by_one(slots, off)
        placed = dict(zip(slots, self._in_turn(), strict=False))
        for name, count in Counter(placed.values()).items():
            self._own[name] += count
            self._spare.room[name] -= count
        return placed

    def _one_by_one(
        self, slots: Iterable[int], off: Mapping[int, Container[str]]
    ) -> dict[int, str]:
        placed = {}
        ranks = self._ranks()  # a slot changes nothing but the rank of who takes it
        heapq.heapify(ranks)
        for slot in slots:
            if not ranks:
                break
            passed_over = _pass_over(ranks, off.get(slot, ()))
            if ranks:
                placed[slot] = best = ranks[0][-1]
                if (rank := self.take(best)) is None:
                    heapq.heappop(ranks)
                else:
                    heapq.heapreplace(ranks, rank)
            for rank in passed_over:
                heapq.heappush(ranks, rank)
        return placed

    def _in_turn(self) -> Iterator[str]:
        """Who takes slot after slot where that costs room, and nothing else.

        The hosts with the most room take one each, in order of what they have of the service, and
        then have as much room as those that had one less. What a host has and its room add up to
        the same before and after, so their order is settled when they come in.
        """
        waiting = sorted(self._ranks(), reverse=True)
        turns, names = list[tuple[int, str]](), list[str]()
        for room in range(-waiting[-1][1] if waiting else 0, 0, -1):
            before = len(turns)
            while waiting and -waiting[-1][1] == room:
                _, _, own, name = waiting.pop()
                turns.append((own + room, name))
            if len(turns) > before:
                turns.sort()
                names = [name for _, name in turns]
            yield from names

    def _ranks(self) -> list[Rank]:
        """The ranks of the hosts that have room."""
        return [self._rank(name) for name in self._hosts if self.left(name) > 0]

    def left(self, name: str) -> int:
        """How many more instances of the service the host may take; none beside one whose port is
        fixed.
        """
        if name in self._fixed:
            return 0 if self._own[name] else min(1, self._spare.room[name])
        return self._spare.room[name]

    def take(self, name: str) -> Rank | None:
        """The host takes a slot; returns where it stands then, None if it has no more room."""
        self._own[name] += 1
        self._spare.room[name] -= 1
        if (needs := self._needs.get(name)) is not None:
            self._spare.reserved[name] = self._spare.reserved[name].plus(needs)
        return self._rank(name) if self.left(name) > 0 else None

    def give_back(self, claim: SlotRecord) -> None:
        """The host of `claim`, which lives, has it no more."""
        name = claim.host
        self._own[name] -= 1
        self._spare.room[name] += 1
        self._spare.reserved[name] = self._spare.reserved[name].plus(claim.demand, -1)

    def fits(self, name: str) -> bool:
        """Whether what the instance is to have is there; a wish to 0, or of 0, is none."""
        if (needs := self._needs.get(name)) is None:
            return True
        host, then = self._hosts[name], self._spare.reserved[name].plus(needs)
        return (then.vcpus <= host.cpus or not needs.vcpus) and (
            not (host.memory_mib and needs.memory_mib) or then.memory_mib <= host.memory_mib
        )

    def _rank(self, name: str) -> Rank:
        """Where the host stands among those that could take the next slot: the least one does."""
        return not self.fits(name), -self._spare.room[name], self._own[name], name


def _pass_over(ranks: list[Rank], off: Container[str]) -> list[Rank]:
    """Take from a heap of ranks those that come before the first whose host is not in `off`."""
    passed_over = []
    while ranks and ranks[0][-1] in off:
        passed_over.append(heapq.heappop(ranks))
    return passed_over
