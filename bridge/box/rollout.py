"""Replacing instances one at a time: those whose config differs, that are on a host which is being
drained, or that are to be moved. Pure.

A rollout is a walk of the service's slot set, one step a compare-and-set: add one slot beyond
the target (it gets the new config), and once all up-to-date instances are Ready take an outdated
slot out. With no room for an extra one, or with a fixed host port, the old one goes first, if it
is on a host that can take the new one; likewise when the room went to somebody else. Each step
is decided from the records alone, so that any Box can take it and a crash in between leaves a
state from which the next step follows.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from datetime import datetime

from msgspec.structs import replace

from bridge.box.authority import idlest
from bridge.box.lifecycle import ENDED, SERVING
from bridge.box.model import (
    MAX_FAILED_REPLACEMENTS,
    Decision,
    FleetState,
    Rollout,
    ServiceRecord,
    SlotRecord,
)
from bridge.box.placement import able_hosts, capacity, host_port, place, rivals, room


def outdated(service: str, fleet: FleetState) -> list[int]:
    """The slots of the set whose living instance is to be replaced."""
    record, slots = fleet.services[service], fleet.slots_of(service)
    config = record.config_id
    return [
        slot
        for slot in record.slots
        if _living(there := slots.get(slot))
        and there is not None
        and (there.config != config or _must_move(record, fleet, slot, there))
    ]


def under_way(service: str, fleet: FleetState) -> bool:
    """Whether instances of `service` are still to be replaced, and will be."""
    record = fleet.services.get(service)
    if record is None or (record.rollout is not None and record.rollout.stopped):
        return False
    return bool(outdated(service, fleet))


def next_step(service: str, fleet: FleetState, *, at: datetime, host: str) -> ServiceRecord | None:
    """The service's record after the next step of its rollout; None while there is none to take."""
    record = fleet.services[service]
    slots = fleet.slots_of(service)
    old = outdated(service, fleet)
    rollout = record.rollout
    if not old:
        # An extra slot is left over where what was outdated is so no more.
        kept = _without_surplus(service, fleet, record)
        done = rollout is not None or record.moves or kept != record.slots
        return _stepped(record, kept, None, at, host, "rollout done") if done else None
    if rollout is not None and rollout.stopped:
        return None
    members = set(record.slots)
    waiting = {slot for slot in members - set(old) if not _serving(fleet, slots.get(slot))}
    if waiting and not _homeless(service, fleet, record, waiting, at):
        return None  # the replacement made last is not Ready yet
    current = Rollout(config=record.config_id)  # with what failed before it was Ready forgotten
    if not waiting and len(members) > record.target:
        members -= set(idlest(fleet, service, old, 1))
        note = "rollout: an outdated instance goes"
    elif not waiting and _room(service, fleet, record, old, at):
        members |= set(fleet.free_slots(service, 1, beside=members))
        note = "rollout: a replacement comes"
    else:
        makes_room = [slot for slot in old if _makes_room(service, fleet, slots[slot])]
        gone = idlest(fleet, service, makes_room, 1)
        if not gone:
            return None  # nobody's end would make room
        if len(members) == record.target:
            members |= set(fleet.free_slots(service, 1, beside=members))
        members -= set(gone)
        note = "rollout: one instance is replaced"
    return _stepped(record, sorted(members), current, at, host, note)


def failed(
    service: str, fleet: FleetState, slot: int, why: str, *, at: datetime, host: str
) -> ServiceRecord | None:
    """The record after a replacement in `slot` failed before it was Ready; None if that does not
    concern a rollout. The third failure running stops the rollout and gives up the extra slot.
    """
    record = fleet.services.get(service)
    if record is None or record.rollout is None or record.rollout.stopped:
        return None
    if slot not in record.slots or not outdated(service, fleet):
        return None
    failures = record.rollout.failures + 1
    if failures < MAX_FAILED_REPLACEMENTS:
        rollout = replace(record.rollout, failures=failures)
        return _stepped(record, record.slots, rollout, at, host, f"rollout: failure {failures}")
    stopped = f"rollout stopped after {failures} failed replacements: {why}"
    rollout = replace(record.rollout, failures=failures, stopped=stopped)
    members = set(record.slots)
    if len(members) > record.target:
        members.discard(slot)
    return _stepped(record, sorted(members), rollout, at, host, stopped)


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
        decision=Decision(at=at, host=host, replicas=record.target, error=note),
    )


def _room(
    service: str, fleet: FleetState, record: ServiceRecord, old: list[int], at: datetime
) -> bool:
    """Whether some host can take an extra instance: for one that is to leave its host, wherever
    it would be placed; else beside all that is promised.
    """
    slots = fleet.slots_of(service)
    if any(_must_move(record, fleet, slot, slots[slot]) for slot in old):
        extra = fleet.free_slots(service, 1, beside=set(record.slots))
        return bool(place(service, fleet, record, extra, at=at))
    able, _ = able_hosts(service, fleet, record)
    if any(host_port(record.config, host, service) for host in able.values()):
        return False
    sharing = rivals(fleet, able)
    promised = sum(len(item.slots) for name, item in fleet.services.items() if name in sharing)
    total = sum(capacity(name, host, fleet) for name, host in able.items())
    free = any(room(name, host, fleet) > 0 for name, host in able.items())
    return free and promised < total


def _makes_room(service: str, fleet: FleetState, claim: SlotRecord) -> bool:
    """Whether the end of the instance lets another be made: not on a host that takes none, unless
    it was ordered to be emptied all the same.
    """
    able, _ = able_hosts(service, fleet, fleet.services[service])
    order = fleet.orders.get(claim.host)
    return order.forced if order is not None and order.draining else claim.host in able


def _must_move(record: ServiceRecord, fleet: FleetState, slot: int, claim: SlotRecord) -> bool:
    """Whether the instance is to be replaced on another host, whatever its config."""
    order = fleet.orders.get(claim.host)
    return slot in record.moves or (order is not None and order.draining)


def _without_surplus(service: str, fleet: FleetState, record: ServiceRecord) -> list[int]:
    """The set without the extra slot of a rollout that ended early, as when a drain is called
    off: of those that do not serve yet, if there are any.
    """
    slots, surplus = fleet.slots_of(service), len(record.slots) - record.target
    idle = [slot for slot in record.slots if not _serving(fleet, slots.get(slot))]
    gone = idlest(fleet, service, idle if len(idle) >= surplus else record.slots, max(surplus, 0))
    return sorted(set(record.slots) - set(gone))


def _homeless(
    service: str,
    fleet: FleetState,
    record: ServiceRecord,
    waiting: AbstractSet[int],
    at: datetime,
) -> bool:
    """Whether no host has room for any of the `waiting` slots, nor will soon."""
    claims = {
        slot: claim for slot, claim in fleet.slots_of(service).items() if not fleet.is_orphan(claim)
    }
    draining = claims.keys() - set(record.slots)
    return not (
        draining or waiting & claims.keys() or place(service, fleet, record, waiting, at=at)
    )


def _living(record: SlotRecord | None) -> bool:
    return record is not None and record.info.state not in ENDED


def _serving(fleet: FleetState, record: SlotRecord | None) -> bool:
    return record is not None and record.info.state in SERVING and not fleet.is_orphan(record)
