"""How many instances the hosts can hold for a service, and how many other services may use. Pure.

Both are computed once and cached until something changes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bridge.box.scheduler.placement import able_hosts, capacity, host_port, rivals
from bridge.box.state.capacity_cache import Capacity, Competition
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.records import HostRecord, ServiceRecord
from bridge.protocol import ScaleConfig


def capacity_for(service: str, fleet: FleetState, record: ServiceRecord) -> Capacity:
    """The capacity of the hosts for `service` with the config of `record`."""
    cached = fleet.capacity_cache.capacity(service, record)
    if cached is not None:
        return cached
    able, blockers = able_hosts(service, fleet, record)
    computed = Capacity(
        config=record.config,
        on_request=record.on_request,
        able=able,
        blockers=blockers,
        total=sum(capacity(name, host, fleet) for name, host in able.items()),
        places=_places(service, fleet, able) if fixes_port(able, record.config, service) else None,
    )
    fleet.capacity_cache.keep_capacity(service, computed)
    return computed


def total_and_used(service: str, fleet: FleetState, hosts: Capacity) -> tuple[int, int]:
    """How many instances the hosts can hold in all, and how many of these other services may use.

    A fixed host port leaves one place on each host. A service whose record cannot be read may use
    at least as many as it has slots.
    """
    competition = _competition(service, fleet, hosts)
    unreadable = competition.rivals & fleet.unreadable_services
    used = competition.count + sum(len(fleet.slots_of(name)) for name in unreadable)
    total = hosts.total if hosts.places is None else min(hosts.total, hosts.places + used)
    return total, used


def fixes_port(hosts: Mapping[str, HostRecord], config: ScaleConfig, service: str) -> bool:
    """Whether an instance with `config` has a fixed port on each of the hosts."""
    return all(host_port(config, host, service) for host in hosts.values())


def _competition(service: str, fleet: FleetState, hosts: Capacity) -> Competition:
    cached = fleet.capacity_cache.competition(service)
    if cached is not None:
        return cached
    others = rivals(fleet, hosts.able) - {service}
    count = sum(record.target for name, record in fleet.services.items() if name in others)
    computed = Competition(rivals=others, count=count)
    fleet.capacity_cache.keep_competition(service, computed)
    return computed


def _places(service: str, fleet: FleetState, able: Iterable[str]) -> int:
    """How many instances the hosts can have with one on each. A cordoned host counts if it has one
    already, a host that is being drained never.
    """
    occupied, orders = fleet.service_slots(service).hosts, fleet.orders
    return sum(
        name not in orders or (name in occupied and not orders[name].draining) for name in able
    )
