"""Which hosts can run a service, and which of them should take a slot. Pure.

Every Box gives the same answer from the same records. Hosts with room are ranked: first those that
have the vcpus and memory that the instance demands, then by most room, then by fewest instances of
the service, then by name. Only free slots are placed, so a host that joins moves nothing.
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
from bridge.box.state.runtime_limits import (
    config_blocker,
    fixed_port,
    request_blocker,
    unlisted_blocker,
)
from bridge.images import admits, same_image
from bridge.protocol import ScaleConfig

Rank = tuple[bool, int, int, str]
"""The rank of a host; the lowest takes the next slot. Its name comes last."""

_NO_RANK: Final = (True, 0, 0, "")


def able_hosts(
    service: str, fleet: FleetState, record: ServiceRecord
) -> tuple[dict[str, HostRecord], dict[str, str]]:
    """The live hosts that can run `service` with the config of `record`, cordoned ones included;
    and, for the other hosts that offer it, the reasons why they cannot.
    """
    able, blockers = {}, {}
    config_blockers: dict[tuple[object, ...], str | None] = {}  # most hosts are alike
    for name, host in fleet.offering(service, on_request=record.on_request).items():
        offer = host.services.get(service)
        limits = host.request_env, host.request_ports
        kind = host.runtime, host.cpus, host.images, limits, *host.lacks.items(), _rules(offer)
        if kind not in config_blockers:
            config_blockers[kind] = _config_blocker(service, host, record.config)
        if blocker := _label_blocker(service, host, record.config) or config_blockers[kind]:
            blockers[name] = blocker
        else:
            able[name] = host
    return able, blockers


def run_blocker(service: str, host: HostRecord, config: ScaleConfig) -> str | None:
    """Why a host that offers `service` cannot run it with `config`. A host that does not list the
    service offers to run it from an image.
    """
    return _label_blocker(service, host, config) or _config_blocker(service, host, config)


def _label_blocker(service: str, host: HostRecord, config: ScaleConfig) -> str | None:
    offer = host.services.get(service)
    if offer is None and not config.image:
        return "it does not list the service, and no image is named for it"
    return _missing_label(offer, host) if offer else None


def _missing_label(offer: Offer, host: HostRecord) -> str | None:
    """Which label of `offer` its host lacks."""
    for label, value in offer.needs.items():
        if (actual := host.labels.get(label)) != value:
            return f"it needs a host with {label} = {value!r}, not {actual!r}"
    return None


def _rules(offer: Offer | None) -> tuple[object, ...]:
    """What of an offer decides which config its host can have."""
    return (offer.image, offer.request_env, offer.fixed_port) if offer else ()


def _config_blocker(service: str, host: HostRecord, config: ScaleConfig) -> str | None:
    if blocker := config_blocker(host.runtime, config, cpus=host.cpus, lacks=host.lacks):
        return blocker
    offer = host.services.get(service)
    if blocker := request_blocker(config) or unlisted_blocker(
        config,
        names=offer.request_env if offer else host.request_env,
        ports=host.request_ports,
        own_port=offer.fixed_port if offer else 0,
    ):
        return blocker
    image, configured = config.image, offer.image if offer else ""
    if not image or same_image(image, configured) or admits(host.images, image):
        return None
    return f"image {image[:120]!r} is not admitted by its [box] allow_images"


def rivals(fleet: FleetState, able: Mapping[str, HostRecord]) -> set[str]:
    """The services that could use the hosts `able`.

    These are the services that the hosts list and have the labels for, those made by requests whose
    image a host admits, and those with an unreadable record, as they may be made by requests. Their
    configs do not count: a request may change the config and keep the target.
    """
    services = set[str]()
    for host in able.values():
        for name, offer in host.services.items():
            if name not in services and not _missing_label(offer, host):
                services.add(name)
    if patterns := {host.images for host in able.values() if host.images}:
        services |= fleet.unreadable_services
        services |= {
            name
            for name, record in fleet.services.items()
            if record.on_request and any(admits(own, record.config.image or "") for own in patterns)
        }
    return services


def host_port(config: ScaleConfig, host: HostRecord, service: str) -> int:
    """The fixed port of an instance of `service` on `host`; 0 if any port will do."""
    if config.port_map:
        return fixed_port(config.port_map)
    return host.services.get(service, NO_OFFER).fixed_port


def demand(config: ScaleConfig, host: HostRecord, service: str) -> Demand:
    """The vcpus and memory that an instance of `service` with `config` demands of `host`."""
    default = host.services.get(service, NO_OFFER).demand
    return Demand.of(config.vcpus, config.memory_mib, default)


def room(name: str, host: HostRecord, fleet: FleetState) -> int:
    """How many more instances the host may take; 0 while it is cordoned or not ready."""
    if name in fleet.orders or not host.ready:
        return 0
    return host.max_instances - fleet.used.get(name, 0)


def first_at_work(hosts: Mapping[str, HostRecord]) -> str:
    """The host that does the work that only one host should do: the first by name that is ready and
    decides; "" if no host is.
    """
    return min((name for name, host in hosts.items() if host.ready and host.decides), default="")


def capacity(name: str, host: HostRecord, fleet: FleetState) -> int:
    """How many instances the host counts for in a decision. A cordoned host counts for those that
    it has. A host that is being drained counts for none: its instances need room elsewhere, which
    must not be granted to others.
    """
    order = fleet.orders.get(name)
    return holds(name, host, fleet) if order is None or not order.draining else 0


def holds(name: str, host: HostRecord, fleet: FleetState) -> int:
    """How many instances the host can have now. A cordoned host can have those that it has, up to
    `max_instances`: a host that returns after an outage may have more.
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
    """The host that should take each of the `free` slots at `at`. Slots for which there is no room
    are left out.
    """
    free = sorted(free)
    if not free:
        return {}  # the usual case, and a Placement costs a look at each host
    hosts = fleet.offering(service, on_request=record.on_request)
    return Placement(service, fleet, record, HostRoom(fleet, hosts)).place(
        free, excluded_hosts(record, at)
    )


def excluded_hosts(record: ServiceRecord, at: datetime) -> dict[int, set[str]]:
    """The hosts that slots must not be placed on at `at`, by slot."""
    hosts: dict[int, set[str]] = {}
    for item in record.avoid:
        if item.until > at:
            hosts.setdefault(item.slot, set()).add(item.host)
    return hosts


class HostRoom:
    """The room on each of `hosts` (all by default) and the demands of its instances, while slots
    are being placed. Placements of several services may share it.
    """

    def __init__(self, fleet: FleetState, hosts: Mapping[str, HostRecord] | None = None) -> None:
        hosts = fleet.hosts if hosts is None else hosts
        self.room = {name: room(name, host, fleet) for name, host in hosts.items()}
        self.reserved = {name: fleet.reserved.get(name, NOTHING) for name in hosts}


class Placement:
    """Places slots of one service, one after the other. `able` are the hosts that can run it, if
    the caller knows them.
    """

    def __init__(
        self,
        service: str,
        fleet: FleetState,
        record: ServiceRecord,
        host_room: HostRoom,
        able: Mapping[str, HostRecord] | None = None,
    ) -> None:
        self._hosts = able_hosts(service, fleet, record)[0] if able is None else able
        self._host_room = host_room
        demands = ((n, demand(record.config, host, service)) for n, host in self._hosts.items())
        self._demands = {name: item for name, item in demands if item != NOTHING}
        self._fixed_port = {
            name for name, host in self._hosts.items() if host_port(record.config, host, service)
        }
        self._slot_counts = Counter(fleet.service_slots(service).hosts)

    def best(self) -> str:
        """The host that should take the next slot; "" if no host can."""
        return min(self._ranks(), default=_NO_RANK)[-1]

    def place(self, slots: Iterable[int], excluded: Mapping[int, Container[str]]) -> dict[int, str]:
        """The host for each of `slots`, in this order; `excluded` has the hosts that a slot must
        not be placed on. Slots for which there is no room are left out.
        """
        if excluded or self._demands or self._fixed_port:
            return self._one_by_one(slots, excluded)
        placed = dict(zip(slots, self._in_turn(), strict=False))
        for name, count in Counter(placed.values()).items():
            self._slot_counts[name] += count
            self._host_room.room[name] -= count
        return placed

    def _one_by_one(
        self, slots: Iterable[int], excluded: Mapping[int, Container[str]]
    ) -> dict[int, str]:
        placed = {}
        ranks = self._ranks()  # a slot changes only the rank of the host that takes it
        heapq.heapify(ranks)
        for slot in slots:
            if not ranks:
                break
            skipped = _pop_excluded(ranks, excluded.get(slot, ()))
            if ranks:
                placed[slot] = best = ranks[0][-1]
                if (rank := self.take(best)) is None:
                    heapq.heappop(ranks)
                else:
                    heapq.heapreplace(ranks, rank)
            for rank in skipped:
                heapq.heappush(ranks, rank)
        return placed

    def _in_turn(self) -> Iterator[str]:
        """The host for one slot after the other, where a slot costs room and nothing else.

        The hosts with the most room take one slot each, in the order of their instances of the
        service. They then have as much room as the hosts that had one place less. The sum of its
        instances and its room stays the same for each host, so the order among them is fixed when
        they join.
        """
        waiting = sorted(self._ranks(), reverse=True)
        turns, names = list[tuple[int, str]](), list[str]()
        for room in range(-waiting[-1][1] if waiting else 0, 0, -1):
            before = len(turns)
            while waiting and -waiting[-1][1] == room:
                _, _, count, name = waiting.pop()
                turns.append((count + room, name))
            if len(turns) > before:
                turns.sort()
                names = [name for _, name in turns]
            yield from names

    def _ranks(self) -> list[Rank]:
        """The ranks of the hosts that have room."""
        return [self._rank(name) for name in self._hosts if self.left(name) > 0]

    def left(self, name: str) -> int:
        """How many more instances of the service the host may take: with a fixed port one, if it
        has none yet.
        """
        if name in self._fixed_port:
            return 0 if self._slot_counts[name] else min(1, self._host_room.room[name])
        return self._host_room.room[name]

    def take(self, name: str) -> Rank | None:
        """Count a slot for the host. Returns its new rank, None if it has no room left."""
        self._slot_counts[name] += 1
        self._host_room.room[name] -= 1
        if (demand := self._demands.get(name)) is not None:
            self._host_room.reserved[name] = self._host_room.reserved[name].plus(demand)
        return self._rank(name) if self.left(name) > 0 else None

    def give_back(self, claim: SlotRecord) -> None:
        """Count the slot of `claim`, whose host is live, as given up."""
        name = claim.host
        self._slot_counts[name] -= 1
        self._host_room.room[name] += 1
        self._host_room.reserved[name] = self._host_room.reserved[name].plus(claim.demand, -1)

    def fits(self, name: str) -> bool:
        """Whether the host has the vcpus and memory that the instance demands. A demand of 0, and
        an unknown amount of memory, always fits.
        """
        if (demand := self._demands.get(name)) is None:
            return True
        host, total = self._hosts[name], self._host_room.reserved[name].plus(demand)
        return (total.vcpus <= host.cpus or not demand.vcpus) and (
            not (host.memory_mib and demand.memory_mib) or total.memory_mib <= host.memory_mib
        )

    def _rank(self, name: str) -> Rank:
        """The rank of the host among those that could take the next slot."""
        return not self.fits(name), -self._host_room.room[name], self._slot_counts[name], name


def _pop_excluded(ranks: list[Rank], excluded: Container[str]) -> list[Rank]:
    """Pop the ranks of excluded hosts from the top of a heap, and return them."""
    skipped = []
    while ranks and ranks[0][-1] in excluded:
        skipped.append(heapq.heappop(ranks))
    return skipped
