"""Whether a host can be emptied: is there room elsewhere for what runs on it? Pure.

A forecast by the same placement that will decide. Rooms are promised in the order of names, and
services that few hosts can run come first; it may say no where a cleverer order would fit, never
yes where there is no room as the fleet stands.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from msgspec.structs import replace

from bridge.box.model import FleetState, HostOrder, ServiceRecord
from bridge.box.placement import Board, Spare, able_hosts, avoided

_DRAINED: Final = HostOrder(draining=True)


def lacking(host: str, fleet: FleetState, *, at: datetime) -> dict[str, int]:
    """How many instances of which services on `host` have no room on the others; empty if it can
    be emptied. What is placed nowhere yet, or is on another host that is being drained, needs room
    as well, and comes first.
    """
    fleet = replace(fleet, orders={**fleet.orders, host: _DRAINED})
    spare = Spare(fleet)
    found: dict[str, int] = {}
    for service, record in sorted(fleet.services.items(), key=lambda item: _choice(fleet, *item)):
        first, mine = _homeless(service, fleet, host)
        if first or mine:
            board = Board(service, fleet, record, spare)
            # One that moves gets a new slot, which is kept off no host.
            placed = board.place(first, avoided(record, at)) | board.place(mine, {})
            if short := min(len(first) + len(mine) - len(placed), len(mine)):
                found[service] = short
    return found | _unmovable(host, fleet)


def _choice(fleet: FleetState, service: str, record: ServiceRecord) -> tuple[int, str]:
    return len(able_hosts(service, fleet, record)[0]), service


def _homeless(service: str, fleet: FleetState, host: str) -> tuple[list[int], list[int]]:
    """The slots that are to be placed: those not on `host`, and those on it."""
    tally, orphans = fleet.tally(service), fleet.orphans(service)
    mine = (tally.on(host) & tally.wanted) - orphans
    leaving = set[int]().union(*map(tally.on, fleet.draining())) & tally.wanted
    return sorted(fleet.vacant(service) | (leaving - orphans - mine)), sorted(mine)


def _unmovable(host: str, fleet: FleetState) -> dict[str, int]:
    """What runs there for services whose record is missing or cannot be read."""
    there = fleet.housed(host).items()
    return {service: count for service, count in there if service not in fleet.services}
