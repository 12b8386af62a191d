"""Whether hosts can be emptied: whether other hosts have room for their instances. Pure.

The forecast uses the same placement as the decisions. Services that few hosts can run are placed
first, then the others by name. The forecast may be negative where another order would fit; it is
never positive without room in the current fleet.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Final

from msgspec.structs import replace

from bridge.box.scheduler.placement import HostRoom, Placement, able_hosts, excluded_hosts
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.records import HostOrder

_DRAINED: Final = HostOrder(draining=True)


def room_lacking(host: str, fleet: FleetState, *, at: datetime) -> dict[str, int]:
    """By service, how many instances on `host` would have no room elsewhere if it were drained as
    well; empty if the host can be emptied.
    """
    return DrainForecast(replace(fleet, orders={**fleet.orders, host: _DRAINED}), at=at).short(host)


class DrainForecast:
    """The placement of all instances if each host that is being drained is emptied.

    It is computed once for all hosts: the instances of one need room beside those of another, and
    slots without a host are placed before both.
    """

    def __init__(self, fleet: FleetState, *, at: datetime) -> None:
        self._fleet = fleet
        self._draining = set(fleet.draining())
        self._leaving = {name: Counter[str]() for name in self._draining}
        self._missing: dict[str, int] = {}
        to_place = {service: both for service in fleet.services if any(both := self._of(service))}
        able = {
            service: able_hosts(service, fleet, fleet.services[service])[0] for service in to_place
        }
        host_room = HostRoom(fleet)
        for service in sorted(to_place, key=lambda service: (len(able[service]), service)):
            record, (vacant, leaving) = fleet.services[service], to_place[service]
            placement = Placement(service, fleet, record, host_room, able[service])
            placed = placement.place(vacant, excluded_hosts(record, at))
            # An instance that moves gets a new slot, which no host is excluded from.
            placed |= placement.place(leaving, {})
            self._missing[service] = len(vacant) + len(leaving) - len(placed)

    def short(self, host: str) -> dict[str, int]:
        """By service, how many instances on `host`, a draining one, have no room elsewhere."""
        leaving = self._leaving.get(host, {}).items()
        short = {service: min(self._missing.get(service, 0), count) for service, count in leaving}
        return {service: count for service, count in short.items() if count} | self._unmovable(host)

    def waiting(self, host: str) -> dict[str, int]:
        """By service that `host` could run, how many instances have no room, whether they are on a
        host that is being drained or on none.
        """
        services = self._fleet.services.items()
        return {
            service: missing
            for service, record in services
            if (missing := self._missing.get(service, 0))
            and host in self._fleet.offering(service, on_request=record.on_request)
        }

    def _of(self, service: str) -> tuple[list[int], list[int]]:
        """The slots to place: those without a host, dead hosts' included; and those that leave a
        host, without as many as have a replacement already.
        """
        fleet, record = self._fleet, self._fleet.services[service]
        slots, orphans = fleet.service_slots(service), fleet.orphans(service)
        leaving = set[int]()
        for host in self._draining & slots.hosts.keys():
            if members := slots.on(host) & slots.wanted:
                self._leaving[host][service] += len(members)
                leaving |= members - orphans
        replaced = max(0, len(record.slots) - record.target)
        return sorted(fleet.vacant(service)), sorted(leaving)[replaced:]

    def _unmovable(self, host: str) -> dict[str, int]:
        """The slots of services whose record is missing or cannot be read."""
        counts = self._fleet.slot_counts(host).items()
        return {service: count for service, count in counts if service not in self._fleet.services}
