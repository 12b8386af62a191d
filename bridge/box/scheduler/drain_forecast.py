"""Whether hosts can be emptied: is there room elsewhere for what runs on them? Pure.

A forecast by the same placement that will decide. Rooms are promised in the order of names, and
services that few hosts can run come first; it may say no where a cleverer order would fit, never
yes where there is no room as the fleet stands.
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


def lacking(host: str, fleet: FleetState, *, at: datetime) -> dict[str, int]:
    """How many instances of which services on `host` would have no room on the others if it were
    drained as well; empty if it can be emptied.
    """
    return DrainForecast(replace(fleet, orders={**fleet.orders, host: _DRAINED}), at=at).short(host)


class DrainForecast:
    """What has room if each host that is being drained is emptied: worked out once for all of them,
    since what leaves one of them needs room beside what leaves another, and what is placed nowhere
    yet needs room before either.
    """

    def __init__(self, fleet: FleetState, *, at: datetime) -> None:
        self._fleet = fleet
        self._draining = set(fleet.draining())
        self._leaving = {name: Counter[str]() for name in self._draining}
        self._missing: dict[str, int] = {}
        homeless = {service: found for service in fleet.services if any(found := self._of(service))}
        able = {
            service: able_hosts(service, fleet, fleet.services[service])[0] for service in homeless
        }
        spare = HostRoom(fleet)
        for service in sorted(homeless, key=lambda service: (len(able[service]), service)):
            record, (vacant, leaving) = fleet.services[service], homeless[service]
            board = Placement(service, fleet, record, spare, able[service])
            # One that moves gets a new slot, which is kept off no host.
            placed = board.place(vacant, excluded_hosts(record, at)) | board.place(leaving, {})
            self._missing[service] = len(vacant) + len(leaving) - len(placed)

    def short(self, host: str) -> dict[str, int]:
        """How many instances of which services on `host`, which is being drained, have no room."""
        leaving = self._leaving.get(host, {}).items()
        short = {service: min(self._missing.get(service, 0), count) for service, count in leaving}
        return {service: count for service, count in short.items() if count} | self._unmovable(host)

    def waiting(self, host: str) -> dict[str, int]:
        """How many instances of which services that `host` could run have no room: on it, and also
        ended, and gone from it or from another.
        """
        services = self._fleet.services.items()
        return {
            service: missing
            for service, record in services
            if (missing := self._missing.get(service, 0))
            and host in self._fleet.offering(service, on_request=record.on_request)
        }

    def _of(self, service: str) -> tuple[list[int], list[int]]:
        """The slots that are to be placed: those that are nowhere, a dead host's among them, and
        those that leave, but for as many as have a replacement already.
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
        """What runs there for services whose record is missing or cannot be read."""
        there = self._fleet.slot_counts(host).items()
        return {service: count for service, count in there if service not in self._fleet.services}
