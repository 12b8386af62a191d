"""Replacing instances a few at a time: those whose config differs, that are on a host which is
being drained, or that are to be moved. Pure.

A rollout is a walk of the service's slot set, one step a compare-and-set: add slots beyond the
target, `max_surge` at most (they get the new config), and for each that is Ready take an outdated
slot out. With no room for an extra one, or with a fixed host port, the old one goes first, if it
is on a host that takes the new one; likewise when the room went to somebody else. One that is only
to be moved never goes first: it stays where it is. Each step is decided from the records alone, so
that any Box can take it and a crash in between leaves a state from which the next step follows.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from datetime import datetime
from typing import Final

from msgspec.structs import replace

from bridge.box.scheduler.instance_order import idlest
from bridge.box.scheduler.placement import able_hosts, holds, host_port, place, rivals, room
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.lifecycle import ENDED
from bridge.box.state.records import (
    MAX_FAILED_REPLACEMENTS,
    Decision,
    Rollout,
    ServiceRecord,
    SlotRecord,
)

_WHY: Final = 300  # letters of why a replacement failed: they are kept in the record
_FEW: Final = 3  # hosts that are named


def outdated(service: str, fleet: FleetState) -> list[int]:
    """The slots of the set whose living instance is to be replaced."""
    record, slots, tally = (
        fleet.services[service],
        fleet.slots_of(service),
        fleet.service_slots(service),
    )
    found = tally.outdated_config().union(record.moves, *map(tally.on, fleet.draining()))
    return sorted(slot for slot in found & tally.wanted if _living(slots.get(slot)))


def is_open(service: str, fleet: FleetState) -> bool:
    """Whether there may be a step to take."""
    record = fleet.services.get(service)
    return record is not None and not (record.settled and not outdated(service, fleet))


def under_way(service: str, fleet: FleetState) -> bool:
    """Whether instances of `service` are still to be replaced, and will be."""
    record = fleet.services.get(service)
    if record is None or (record.rollout is not None and record.rollout.stopped):
        return False
    return bool(outdated(service, fleet))


def next_step(service: str, fleet: FleetState, *, at: datetime, host: str) -> ServiceRecord | None:
    """The service's record after the next step of its rollout; None while there is none to take."""
    record, tally = fleet.services[service], fleet.service_slots(service)
    old = outdated(service, fleet)
    if not old:
        # An extra slot is left over where what was outdated is so no more.
        kept = _without_surplus(service, fleet, record)
        done = record.rollout is not None or record.moves or kept != record.slots
        return _stepped(record, kept, None, at, host, "rollout done") if done else None
    if record.rollout is not None and record.rollout.stopped:
        return None
    members, orphans = set(record.slots), fleet.orphans(service)
    waiting = (tally.unready | (orphans & tally.wanted)) - set(old)
    extra = len(members) - record.target
    ready = extra - len(waiting)
    more = min(max_surge(service, fleet), len(old)) - max(extra, len(waiting))
    if ready > 0:
        gone = idlest(fleet, service, old, ready)
        members -= set(gone)
        note = f"rollout: an outdated instance goes for {_cause(service, fleet, gone)}"
    elif more > 0 and (come := _room(service, fleet, record, old, more, at)):
        members |= set(fleet.free_slots(service, come, beside=members))
        note = f"rollout: a replacement comes for {_cause(service, fleet, old)}"
    elif waiting and not _homeless(service, fleet, record, waiting, at):
        return None  # the replacements made last are not Ready yet
    else:
        gone = idlest(fleet, service, _making_room(service, fleet, old), 1)
        if not gone:  # nobody's end would make room
            return _unmoved(service, fleet, at, host)
        if len(members) == record.target:
            members |= set(fleet.free_slots(service, 1, beside=members))
        members -= set(gone)
        note = f"rollout: one instance is replaced for {_cause(service, fleet, gone)}"
    current = Rollout(config=record.config_id)  # with what failed before it was Ready forgotten
    return _stepped(record, sorted(members), current, at, host, note)


def max_surge(service: str, fleet: FleetState) -> int:
    """How many extra instances there may be at a time: what the most careful host says."""
    offers = (host.services[service] for host in fleet.offering(service).values())
    return min((offer.max_surge for offer in offers), default=1)


def failed(
    service: str, fleet: FleetState, slot: int, why: str, *, at: datetime, host: str
) -> ServiceRecord | None:
    """The record after a replacement in `slot` failed before it was Ready; None if that does not
    concern a rollout. The third failure running stops the rollout and gives up the extra slots.
    """
    record = fleet.services.get(service)
    if record is None or record.rollout is None or record.rollout.stopped:
        return None
    if slot not in record.slots or not outdated(service, fleet):
        return None
    failures, why = record.rollout.failures + 1, why[:_WHY]
    if failures < MAX_FAILED_REPLACEMENTS:
        rollout = replace(record.rollout, failures=failures)
        note = f"rollout: failure {failures}: {why}"
        return _stepped(record, record.slots, rollout, at, host, note)
    stopped = f"rollout stopped after {failures} failed replacements: {why}"
    rollout = replace(record.rollout, failures=failures, stopped=stopped)
    members = set(record.slots)
    if len(members) > record.target:
        members.discard(slot)
    kept = _without_surplus(service, fleet, replace(record, slots=sorted(members)))
    return _stepped(record, kept, rollout, at, host, stopped)


def resumed(
    service: str, fleet: FleetState, why: str, *, at: datetime, host: str
) -> ServiceRecord | None:
    """The record with its stopped rollout ready to go on; None if there is none."""
    record = fleet.services.get(service)
    if record is None or record.rollout is None or not record.rollout.stopped:
        return None
    fresh = Rollout(config=record.config_id)
    return _stepped(record, record.slots, fresh, at, host, f"rollout: goes on for {why}")


def _stepped(
    record: ServiceRecord,
    slots: list[int],
    rollout: Rollout | None,
    at: datetime,
    host: str,
    note: str,
) -> ServiceRecord:
    return replace(
        record,
        version=record.version + 1,
        slots=slots,
        rollout=rollout,
        moves=[slot for slot in record.moves if slot in slots and rollout is not None],
        decision=Decision(at=at, host=host, replicas=record.target, error=note, step=True),
    )


def _cause(service: str, fleet: FleetState, slots: Iterable[int]) -> str:
    """What the outdated `slots` are to be replaced for, in words."""
    tally, chosen = fleet.service_slots(service), set(slots)
    drained = sorted(name for name in fleet.draining() if not chosen.isdisjoint(tally.on(name)))
    named = ", ".join(drained[:_FEW]) + (", …" if len(drained) > _FEW else "")
    causes = (
        (named, f"the drain of {named}"),
        (not chosen.isdisjoint(fleet.services[service].moves), "a rebalance"),
        (not chosen.isdisjoint(tally.outdated_config()), "a new config"),
    )
    return " and ".join(words for holds, words in causes if holds)


def _room(
    service: str, fleet: FleetState, record: ServiceRecord, old: list[int], count: int, at: datetime
) -> int:
    """How many of `count` extra instances some hosts can take: for those that are to leave their
    host, as many as would be placed; else as many as there is room for beside all promises.
    """
    slots = fleet.slots_of(service)
    if any(_must_move(record, fleet, slot, slots[slot]) for slot in old):
        extra = fleet.free_slots(service, count, beside=set(record.slots))
        return len(place(service, fleet, record, extra, at=at))
    able, _ = able_hosts(service, fleet, record)
    if any(host_port(record.config, host, service) for host in able.values()):
        return 0
    sharing = rivals(fleet, able)
    promised = sum(len(item.slots) for name, item in fleet.services.items() if name in sharing)
    total = sum(holds(name, host, fleet) for name, host in able.items())
    free = sum(max(0, room(name, host, fleet)) for name, host in able.items())
    return max(0, min(count, free, total - promised))


def _making_room(service: str, fleet: FleetState, old: list[int]) -> list[int]:
    """Those of the `old` whose end lets another be made: not on a host that takes none, unless it
    was ordered to be emptied all the same; and not one that is merely to be moved.
    """
    record, slots, orders = fleet.services[service], fleet.slots_of(service), fleet.orders
    able, _ = able_hosts(service, fleet, record)

    def makes_room(slot: int, claim: SlotRecord) -> bool:
        if (order := orders.get(claim.host)) is not None:
            return order.draining and order.forced
        moves = slot in record.moves and claim.config == record.config_id
        host = able.get(claim.host)
        return not moves and host is not None and host.ready

    return [slot for slot in old if makes_room(slot, slots[slot])]


def _unmoved(service: str, fleet: FleetState, at: datetime, host: str) -> ServiceRecord | None:
    """The record without its moves, for which there is no room any more; None while there may be
    some again: instances drain, or those of a service before this one by name move as well.
    """
    record = fleet.services[service]
    if not record.moves or any(
        fleet.service_slots(name).outside or (other.moves and name < service)
        for name, other in fleet.services.items()
    ):
        return None
    note = f"rebalance: no room any more to move slots {', '.join(map(str, record.moves))}"
    return _stepped(replace(record, moves=[]), record.slots, record.rollout, at, host, note)


def _must_move(record: ServiceRecord, fleet: FleetState, slot: int, claim: SlotRecord) -> bool:
    """Whether the instance is to be replaced on another host, whatever its config."""
    order = fleet.orders.get(claim.host)
    return slot in record.moves or (order is not None and order.draining)


def _without_surplus(service: str, fleet: FleetState, record: ServiceRecord) -> list[int]:
    """The set without the extra slots of a rollout that ended early, as when a drain is called
    off: of those that do not serve yet, if there are enough. What cannot be read may serve.
    """
    surplus = len(record.slots) - record.target
    if surplus <= 0:
        return record.slots
    idle = (fleet.service_slots(service).unready | fleet.orphans(service)).intersection(
        record.slots
    )
    idle -= fleet.unreadable.get(service, frozenset())
    gone = idlest(fleet, service, idle if len(idle) >= surplus else record.slots, surplus)
    return sorted(set(record.slots) - set(gone))


def _homeless(
    service: str,
    fleet: FleetState,
    record: ServiceRecord,
    waiting: AbstractSet[int],
    at: datetime,
) -> bool:
    """Whether no host has room for any of the `waiting` slots, nor will soon."""
    tally, orphans = fleet.service_slots(service), fleet.orphans(service)
    draining, held = tally.outside - orphans, waiting - tally.free - orphans
    return not (draining or held or place(service, fleet, record, waiting, at=at))


def _living(record: SlotRecord | None) -> bool:
    return record is not None and record.info.state not in ENDED
