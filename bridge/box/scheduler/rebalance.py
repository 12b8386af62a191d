"""Which instances should move so that the hosts have about as much room each. Pure.

An instance moves while its host has at least two places less than a host that could take it, from
the fullest host first, so each move helps, none is undone, and a fleet that is even is left alone.
The moves go one at a time through the placement that will carry them out; an instance that would
move again as others do goes straight to where it would end.
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

MAX_MOVES: Final = 256  # in one go: so that a decision stays short, and its answer fits a reply
_GAP: Final = 2  # places; a smaller difference would only change sides


class RebalancePlan(Struct, frozen=True, kw_only=True):
    """The moves, in their order; by service, why its instances were left out; and whether there
    are `more` moves than one decision makes.
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
        if why := _busy(record):
            waiting[service] = why
        else:
            movable.append(service)
    moves: dict[tuple[str, int], Move] = {}
    for move in _SimulatedFleet(fleet, movable).moves():
        key = move.service, move.slot
        if key not in moves and len(moves) == MAX_MOVES:
            return RebalancePlan(moves=_straight(moves.values()), waiting=waiting, more=True)
        first = moves.get(key, move)
        moves[key] = replace(move, source=first.source)
    return RebalancePlan(moves=_straight(moves.values()), waiting=waiting)


def _straight(moves: Iterable[Move]) -> list[Move]:
    return [move for move in moves if move.source != move.target]


def marked(
    service: str, fleet: FleetState, moves: Iterable[Move], decision: Decision
) -> ServiceRecord | None:
    """The service's record with those of `moves` that still stand; None if there are none."""
    record = fleet.services.get(service)
    if record is None or _busy(record):
        return None
    slots = fleet.slots_of(service)
    standing = sorted(
        move.slot
        for move in moves
        if move.slot in record.slots
        and (claim := slots.get(move.slot)) is not None
        and claim.info.id == move.instance_id
    )
    if not standing:
        return None
    note = f"rebalance: {len(standing)} to move, from slots {', '.join(map(str, standing))}"
    after = replace(
        record,
        version=record.version + 1,
        moves=standing,
        decision=replace(decision, replicas=record.target, error=note, step=True),
    )
    return with_request(record, after)


def _busy(record: ServiceRecord) -> str:
    """Why nothing of the service is moved now; empty if it may be."""
    if record.rollout is not None and record.rollout.stopped:
        return f"{record.rollout.stopped}; ask for its config again first"
    if record.rollout is not None or record.moves:
        return "its instances are being replaced already"
    return ""


class _SimulatedFleet:
    """What is where, while instances move in thought."""

    def __init__(self, fleet: FleetState, services: list[str]) -> None:
        self._fleet = fleet
        self._spare = HostRoom(fleet)
        self._boards = {
            service: Placement(service, fleet, fleet.services[service], self._spare)
            for service in services
        }
        self._claims: dict[tuple[str, int], SlotRecord] = {}
        self._there: dict[str, dict[str, list[int]]] = {}
        for service in services:
            for slot in fleet.services[service].slots:
                claim = fleet.slots_of(service).get(slot)
                if claim is not None and self._may_leave(claim):
                    self._put(service, slot, claim)

    def moves(self) -> Iterator[Move]:
        """One move after the other, each as if those before had been made."""
        while (move := self._next()) is not None:
            board = self._boards[move.service]
            claim = self._claims[move.service, move.slot]
            board.give_back(claim)
            board.take(move.target)
            self._there[move.source][move.service].remove(move.slot)
            self._put(move.service, move.slot, replace(claim, host=move.target))
            yield move

    def _put(self, service: str, slot: int, claim: SlotRecord) -> None:
        self._claims[service, slot] = claim
        self._there.setdefault(claim.host, {}).setdefault(service, []).append(slot)

    def _next(self) -> Move | None:
        room = self._spare.room
        most = max(room.values(), default=0)
        best: dict[str, str] = {}
        for source in sorted(self._there, key=lambda name: (room[name], name)):
            if most - room[source] < _GAP:
                return None
            services = self._there[source]
            for service in sorted(services, key=lambda name: (-len(services[name]), name)):
                if service not in best:
                    best[service] = self._destination(service)
                target = best[service]
                if services[service] and target and room[target] - room[source] >= _GAP:
                    return self._move(service, source, target)
        return None

    def _destination(self, service: str) -> str:
        """Where the service's next instance would go, unless it would get less than it should."""
        board = self._boards[service]
        name = board.best()
        return name if name and board.fits(name) else ""

    def _move(self, service: str, source: str, target: str) -> Move:
        [slot] = idlest(self._fleet, service, self._there[source][service], 1)
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
