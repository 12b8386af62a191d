"""Which hosts can run a service, and which of them should take a slot. Pure.

Every Box gives the same answer from the same records. Of the hosts with room it is one on which
there is what the instance is to have, of these the one with the most room, then the one with the
fewest instances of the service, then the first by name. Nothing moves because a host joined: only
free slots are placed.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from datetime import datetime
from typing import Final

from bridge.box.model import (
    NOTHING,
    Demand,
    FleetState,
    HostRecord,
    ServiceRecord,
    SlotRecord,
)
from bridge.box.runtimes.rules import fixed_port, refusal
from bridge.protocol import ScaleConfig

Rank = tuple[bool, int, int, str]
"""Where a host stands: the first of all takes the next slot. Its name comes last."""

_NONE: Final = (True, 0, 0, "")


def able_hosts(
    service: str, fleet: FleetState, config: ScaleConfig
) -> tuple[dict[str, HostRecord], dict[str, str]]:
    """The live hosts that can run `service` with `config`, cordoned ones too; and of those that
    offer it, why the others cannot.
    """
    able, why_not = {}, {}
    refused: dict[tuple[str, int], str] = {}  # most hosts are alike
    for name, host in fleet.offering(service).items():
        kind = host.runtime, host.cpus
        if kind not in refused:
            refused[kind] = refusal(host.runtime, config, cpus=host.cpus) or ""
        if why := _mislabelled(service, host) or refused[kind]:
            why_not[name] = why
        else:
            able[name] = host
    return able, why_not


def unfit(service: str, host: HostRecord, config: ScaleConfig) -> str:
    """Why a host that offers `service` cannot run it with `config`; empty if it can."""
    return _mislabelled(service, host) or refusal(host.runtime, config, cpus=host.cpus) or ""


def _mislabelled(service: str, host: HostRecord) -> str:
    for label, value in host.services[service].needs.items():
        if (found := host.labels.get(label)) != value:
            return f"it needs a host with {label} = {value!r}, not {found!r}"
    return ""


def host_port(config: ScaleConfig, host: HostRecord, service: str) -> int:
    """The host port that an instance of `service` on `host` is bound to; 0 if to none."""
    if config.port_map:
        return fixed_port(config.port_map)
    offer = host.services.get(service)
    return offer.fixed_port if offer else 0


def demand(config: ScaleConfig, host: HostRecord, service: str) -> Demand:
    """What an instance of `service` with `config` is to have of `host`."""
    return Demand.of(config.vcpus, config.memory_mib, host.services[service].demand)


def room(name: str, host: HostRecord, fleet: FleetState) -> int:
    """How many more instances the host may take; a cordoned one takes none."""
    return 0 if name in fleet.orders else host.max_instances - fleet.used.get(name, 0)


def capacity(name: str, host: HostRecord, fleet: FleetState) -> int:
    """How many instances the host counts for: a cordoned one for those that it has, and on its way
    back a host may have more than it should.
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
    board = Board(service, fleet, record, Spare(fleet, fleet.offering(service)))
    # Taking a slot changes nothing but the rank of who took it.
    ranks = board.ranks()
    heapq.heapify(ranks)
    placed: dict[int, str] = {}
    for slot in free:
        if not ranks:
            break
        off = avoided(record, slot, at) if record.avoid else None
        if best := _first(ranks, off) if off else heapq.heappop(ranks)[-1]:
            placed[slot] = best
            if (rank := board.take(best)) is not None:
                heapq.heappush(ranks, rank)
    return placed


def _first(ranks: list[Rank], avoided: Container[str]) -> str:
    """Take the least of a heap of ranks whose host is not `avoided`; "" if there is none."""
    passed_over, best = [], ""
    while ranks and not best:
        rank = heapq.heappop(ranks)
        if rank[-1] in avoided:
            passed_over.append(rank)
        else:
            best = rank[-1]
    for rank in passed_over:
        heapq.heappush(ranks, rank)
    return best


def avoided(record: ServiceRecord, slot: int, at: datetime) -> set[str]:
    """The hosts that `slot` must not be placed on at `at`."""
    return {item.host for item in record.avoid if item.slot == slot and item.until > at}


class Spare:
    """What each of `hosts`, else of all, has left, and what its instances are to have, while slots
    are being placed; boards of several services may share one.
    """

    def __init__(self, fleet: FleetState, hosts: Mapping[str, HostRecord] | None = None) -> None:
        hosts = fleet.hosts if hosts is None else hosts
        self.room = {name: room(name, host, fleet) for name, host in hosts.items()}
        self.reserved = {name: fleet.reserved.get(name, NOTHING) for name in hosts}


class Board:
    """Where slots of one service can go while they are being placed."""

    def __init__(
        self, service: str, fleet: FleetState, record: ServiceRecord, spare: Spare
    ) -> None:
        self._hosts, _ = able_hosts(service, fleet, record.config)
        self._spare = spare
        needs = ((name, demand(record.config, host, service)) for name, host in self._hosts.items())
        self._needs = {name: wish for name, wish in needs if wish != NOTHING}
        self._fixed = {
            name for name, host in self._hosts.items() if host_port(record.config, host, service)
        }
        self._own = Counter(fleet.tally(service).hosts)

    def best(self, avoided: Container[str] = ()) -> str:
        """The host that should take the next slot; "" if there is none."""
        return min((rank for rank in self.ranks() if rank[-1] not in avoided), default=_NONE)[-1]

    def ranks(self) -> list[Rank]:
        """The ranks of the hosts that have room."""
        return [self.rank(name) for name in self._hosts if self.left(name) > 0]

    def left(self, name: str) -> int:
        """How many more instances of the service the host may take; none beside one whose port is
        fixed.
        """
        if name in self._fixed:
            return 0 if self._own[name] else min(1, self._spare.room[name])
        return self._spare.room[name]

    def take(self, name: str) -> Rank | None:
        """The host takes a slot; returns where it stands then, None if it has no more room."""
        own = self._own.get(name, 0) + 1
        room = self._spare.room[name] - 1
        self._own[name], self._spare.room[name] = own, room
        if (needs := self._needs.get(name)) is not None:
            self._spare.reserved[name] = self._spare.reserved[name].plus(needs)
        elif room > 0 and name not in self._fixed:
            return False, -room, own, name  # as below, in short: this is done for every slot
        return self.rank(name) if self.left(name) > 0 else None

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

    def rank(self, name: str) -> Rank:
        """Where the host stands among those that could take the next slot: the least one does."""
        return not self.fits(name), -self._spare.room[name], self._own[name], name
