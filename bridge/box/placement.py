"""Which hosts can run a service, and which of them should take a slot. Pure.

Every Box gives the same answer from the same records. Of the hosts with room it is one on which
there is what the instance is to have, of these the one with the most room, then the one with the
fewest instances of the service, then the first by name. Nothing moves because a host joined: only
free slots are placed.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Container, Iterable
from datetime import datetime

from bridge.box.model import NOTHING, Demand, FleetState, HostRecord, ServiceRecord
from bridge.box.runtimes.rules import fixed_port, refusal
from bridge.protocol import ScaleConfig


def able_hosts(
    service: str, fleet: FleetState, config: ScaleConfig
) -> tuple[dict[str, HostRecord], dict[str, str]]:
    """The live hosts that can run `service` with `config`, cordoned ones too; and of those that
    offer it, why the others cannot.
    """
    able, why_not = {}, {}
    for name, host in fleet.offering(service).items():
        if why := unfit(service, host, config):
            why_not[name] = why
        else:
            able[name] = host
    return able, why_not


def unfit(service: str, host: HostRecord, config: ScaleConfig) -> str:
    """Why a host that offers `service` cannot run it with `config`; empty if it can."""
    needs = host.services[service].needs
    for label, value in needs.items():
        if (found := host.labels.get(label)) != value:
            return f"it needs a host with {label} = {value!r}, not {found!r}"
    return refusal(host.runtime, config, cpus=host.cpus) or ""


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
    """How many instances the host counts for: a cordoned one for those that it has."""
    return fleet.used.get(name, 0) if name in fleet.orders else host.max_instances


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
    board = _Board(service, fleet, record)
    avoided: dict[int, set[str]] = defaultdict(set)
    for item in record.avoid:
        if item.until > at:
            avoided[item.slot].add(item.host)
    placed: dict[int, str] = {}
    for slot in free:
        if best := board.take_best(avoided.get(slot, ())):
            placed[slot] = best
    return placed


class _Board:
    """How much each host has left while slots of one service are being placed."""

    def __init__(self, service: str, fleet: FleetState, record: ServiceRecord) -> None:
        self._hosts, _ = able_hosts(service, fleet, record.config)
        self._room = {name: room(name, host, fleet) for name, host in self._hosts.items()}
        self._needs = {
            name: demand(record.config, host, service) for name, host in self._hosts.items()
        }
        self._reserved = {name: fleet.reserved.get(name, Demand()) for name in self._hosts}
        self._fixed = {
            name for name, host in self._hosts.items() if host_port(record.config, host, service)
        }
        self._own = Counter(claim.host for claim in fleet.slots_of(service).values())
        for name in self._own.keys() & self._fixed:
            self._room[name] = 0  # the port is taken
        # Taking a slot changes nothing but the rank of who took it.
        self._ranks = [self._rank(name) for name, left in self._room.items() if left > 0]
        heapq.heapify(self._ranks)

    def take_best(self, avoided: Container[str]) -> str:
        """The host that should take the next slot, and has now taken it; "" if there is none."""
        passed_over, best = [], ""
        while self._ranks and not best:
            rank = heapq.heappop(self._ranks)
            if rank[-1] in avoided:
                passed_over.append(rank)
            else:
                best = rank[-1]
        for rank in passed_over:
            heapq.heappush(self._ranks, rank)
        if best:
            self._take(best)
        return best

    def _take(self, name: str) -> None:
        self._own[name] += 1
        self._room[name] = 0 if name in self._fixed else self._room[name] - 1
        if self._needs[name] != NOTHING:
            self._reserved[name] = self._reserved[name].plus(self._needs[name])
        if self._room[name] > 0:
            heapq.heappush(self._ranks, self._rank(name))

    def _rank(self, name: str) -> tuple[bool, int, int, str]:
        return not self._fits(name), -self._room[name], self._own[name], name

    def _fits(self, name: str) -> bool:
        """Whether what the instance is to have is there; a wish to 0, or of 0, is none."""
        if self._needs[name] == NOTHING:
            return True
        host, then = self._hosts[name], self._reserved[name].plus(self._needs[name])
        return (then.vcpus <= host.cpus or not self._needs[name].vcpus) and (
            not (host.memory_mib and self._needs[name].memory_mib)
            or then.memory_mib <= host.memory_mib
        )
