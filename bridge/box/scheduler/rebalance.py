"""Which instances should move so that all hosts have about the same room. Pure.

An instance moves while its host has at least two places less than a host that could take it. The
fullest host comes first. Each move helps, none is undone, and an even fleet is left alone. The
moves are simulated one at a time with the placement that will carry them out. An instance that
would move twice goes straight to its last host.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from bridge.admin_protocol import Move
from bridge.box.scheduler.instance_order import idlest
from bridge.box.scheduler.placement import HostRoom, Placement
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.lifecycle import ENDED
from bridge.box.state.records import Decision, ServiceRecord, SlotRecord, with_request

MAX_MOVES: Final = 256  # of one decision, so that it stays short and its answer fits a reply
_GAP: Final = 2  # places; with a smaller difference the hosts would only swap their room


class RebalancePlan(Struct, frozen=True, kw_only=True):
    """The moves in their order; the reason why a service was left out, by service; and whether
    there are `more` moves than one decision makes.
    """

    moves: list[Move]
    waiting: dict[str, str]
    more: bool = False


def balance(fleet: FleetState, *, only: str = "") -> RebalancePlan:
    """The fewest moves that even out the room of the hosts; with `only` those of that service.

    Services whose instances are being replaced are left alone. Hosts under an order, not ready or
    about to leave give nothing and get nothing.
    """
    waiting, movable = {}, []
    for service, record in sorted(fleet.services.items()):
        if only and service != only:
            continue
        if blocker := _blocker(record):
            waiting[service] = blocker
        else:
            movable.append(service)
    moves: dict[tuple[str, int], Move] = {}
    for move in _SimulatedFleet(fleet, movable).moves():
        key = move.service, move.slot
        if key not in moves and len(moves) == MAX_MOVES:
            return RebalancePlan(moves=_without_returns(moves.values()), waiting=waiting, more=True)
        first = moves.get(key, move)
        moves[key] = replace(move, source=first.source)
    return RebalancePlan(moves=_without_returns(moves.values()), waiting=waiting)


def _without_returns(moves: Iterable[Move]) -> list[Move]:
    return [move for move in moves if move.source != move.target]


def with_moves(
    service: str, fleet: FleetState, moves: Iterable[Move], decision: Decision
) -> ServiceRecord | None:
    """The service's record with those of `moves` that are still valid; None if none is."""
    record = fleet.services.get(service)
    if record is None or _blocker(record):
        return None
    claims = fleet.slots_of(service)
    valid = sorted(
        move.slot
        for move in moves
        if move.slot in record.slots
        and (claim := claims.get(move.slot)) is not None
        and claim.info.id == move.instance_id
    )
    if not valid:
        return None
    note = f"rebalance: {len(valid)} to move, from slots {', '.join(map(str, valid))}"
    after = replace(
        record,
        version=record.version + 1,
        moves=valid,
        decision=replace(decision, replicas=record.target, error=note, step=True),
    )
    return with_request(record, after)


def _blocker(record: ServiceRecord) -> str | None:
    """Why no instance of the service is moved now."""
    if record.rollout is not None and record.rollout.stopped:
        return f"{record.rollout.stopped}; ask for its config again first"
    if record.rollout is not None or record.moves:
        return "its instances are being replaced already"
    return None


class _SimulatedFleet:
    """The placement of instances during simulated moves."""

    def __init__(self, fleet: FleetState, services: list[str]) -> None:
        self._fleet = fleet
        self._host_room = HostRoom(fleet)
        self._placements = {
            service: Placement(service, fleet, fleet.services[service], self._host_room)
            for service in services
        }
        self._claims: dict[tuple[str, int], SlotRecord] = {}
        self._movable: dict[str, dict[str, list[int]]] = {}  # slots by host and service
        for service in services:
            for slot in fleet.services[service].slots:
                claim = fleet.slots_of(service).get(slot)
                if claim is not None and self._may_leave(claim):
                    self._put(service, slot, claim)

    def moves(self) -> Iterator[Move]:
        """One move after the other; each assumes that those before it were made."""
        while (move := self._next()) is not None:
            placement = self._placements[move.service]
            claim = self._claims[move.service, move.slot]
            placement.give_back(claim)
            placement.take(move.target)
            self._movable[move.source][move.service].remove(move.slot)
            self._put(move.service, move.slot, replace(claim, host=move.target))
            yield move

    def _put(self, service: str, slot: int, claim: SlotRecord) -> None:
        self._claims[service, slot] = claim
        self._movable.setdefault(claim.host, {}).setdefault(service, []).append(slot)

    def _next(self) -> Move | None:
        room = self._host_room.room
        most = max(room.values(), default=0)
        best: dict[str, str] = {}
        for source in sorted(self._movable, key=lambda name: (room[name], name)):
            if most - room[source] < _GAP:
                return None
            services = self._movable[source]
            for service in sorted(services, key=lambda name: (-len(services[name]), name)):
                if service not in best:
                    best[service] = self._destination(service)
                target = best[service]
                if services[service] and target and room[target] - room[source] >= _GAP:
                    return self._move(service, source, target)
        return None

    def _destination(self, service: str) -> str:
        """The host of the service's next instance; "" if it would not get what it demands."""
        placement = self._placements[service]
        name = placement.best()
        return name if name and placement.fits(name) else ""

    def _move(self, service: str, source: str, target: str) -> Move:
        [slot] = idlest(self._fleet, service, self._movable[source][service], 1)
        return Move(
            service=service,
            slot=slot,
            instance_id=self._claims[service, slot].info.id,
            source=source,
            target=target,
        )

    def _may_leave(self, claim: SlotRecord) -> bool:
        fleet, host = self._fleet, self._fleet.hosts.get(claim.host)
        return not (
            host is None
            or host.closing
            or not host.ready
            or claim.host in fleet.orders
            or claim.info.state in ENDED
            or fleet.is_orphan(claim)
        )
