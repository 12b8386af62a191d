"""The next step of replacing outdated instances: those with another config, those on a host that is
being drained, and those that are to be moved or restarted. Pure.

A rollout changes the service's slot set, one compare-and-set a step. It adds up to `max_surge`
slots beyond the target, which get the new config. For each of these that is Ready it removes an
outdated slot. If there is no room for an extra slot, or its port is fixed, the outdated instance is
removed first, provided its host can take the new one. An instance that is only to be moved is never
removed first. Each step is decided from the records alone, so that any Box can take it, and after a
crash the next step follows from the stored state.
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
from bridge.box.state.ranks import rerank
from bridge.box.state.records import (
    MAX_FAILED_REPLACEMENTS,
    Decision,
    Rollout,
    ServiceRecord,
    SlotRecord,
)

_REASON_LENGTH: Final = 300  # characters kept of why a replacement failed
_NAMED_HOSTS: Final = 3  # in a note


def outdated(service: str, fleet: FleetState) -> list[int]:
    """The slots of the set whose living instance is to be replaced."""
    record, slots = fleet.services[service], fleet.service_slots(service)
    named = {*record.moves, *record.restarts}
    old = slots.outdated_config().union(named, *map(slots.on, fleet.draining()))
    claims = fleet.slots_of(service)
    return sorted(slot for slot in old & slots.wanted if _living(claims.get(slot)))


def is_open(service: str, fleet: FleetState) -> bool:
    """Whether a step may be due."""
    record = fleet.services.get(service)
    return record is not None and not (record.settled and not outdated(service, fleet))


def is_under_way(service: str, fleet: FleetState) -> bool:
    """Whether instances of `service` are outdated, and the rollout has not stopped."""
    record = fleet.services.get(service)
    if record is None or (record.rollout is not None and record.rollout.stopped):
        return False
    return bool(outdated(service, fleet))


def next_step(service: str, fleet: FleetState, *, at: datetime, host: str) -> ServiceRecord | None:
    """The service's record after the next step of its rollout; None while no step is due."""
    record = fleet.services[service]
    old = outdated(service, fleet)
    if not old:
        return _finished(service, fleet, at, host)
    if record.rollout is not None and record.rollout.stopped:
        return None
    slots, orphans = fleet.service_slots(service), fleet.orphans(service)
    members = set(record.slots)
    waiting = (slots.unready | (orphans & slots.wanted)) - set(old)
    extra = len(members) - record.target
    ready = extra - len(waiting)
    more = min(max_surge(service, fleet), len(old)) - max(extra, len(waiting))
    if ready > 0:
        leaving = idlest(fleet, service, old, ready)
        members -= set(leaving)
        note = f"rollout: an outdated instance goes for {_cause(service, fleet, leaving)}"
    elif more > 0 and (added := _room(service, fleet, record, old, more, at)):
        members |= set(fleet.free_slots(service, added, beside=members))
        note = f"rollout: a replacement comes for {_cause(service, fleet, old)}"
    elif waiting and not _homeless(service, fleet, record, waiting, at):
        return None  # the replacements made last are not Ready yet
    else:
        leaving = idlest(fleet, service, _making_room(service, fleet, old), 1)
        if not leaving:
            return _no_moves(service, fleet, at, host)
        if len(members) == record.target:
            members |= set(fleet.free_slots(service, 1, beside=members))
        members -= set(leaving)
        note = f"rollout: one instance is replaced for {_cause(service, fleet, leaving)}"
    rollout = Rollout(config=record.config_id)  # a step resets the count of failures
    return _with_step(record, sorted(members), rollout, at, host, note)


def _finished(service: str, fleet: FleetState, at: datetime, host: str) -> ServiceRecord | None:
    """The record without its rollout; None if it has none, and no extra slot is left over."""
    record = fleet.services[service]
    slots = _without_surplus(service, fleet, record)
    replaced = record.rollout is not None or record.moves or record.restarts
    done = replaced or slots != record.slots
    return _with_step(record, slots, None, at, host, "rollout done") if done else None


def max_surge(service: str, fleet: FleetState) -> int:
    """How many extra instances there may be at a time: the lowest value of the hosts."""
    offers = (host.services[service] for host in fleet.offering(service).values())
    return min((offer.max_surge for offer in offers), default=1)


def count_failure(
    service: str, fleet: FleetState, slot: int, why: str, *, at: datetime, host: str
) -> ServiceRecord | None:
    """The record after a replacement in `slot` failed before it was Ready; None if it was not part
    of a rollout. The third consecutive failure stops the rollout and gives up the extra slots.
    """
    record = fleet.services.get(service)
    if record is None or record.rollout is None or record.rollout.stopped:
        return None
    if slot not in record.slots or not outdated(service, fleet):
        return None
    failures, why = record.rollout.failures + 1, why[:_REASON_LENGTH]
    if failures < MAX_FAILED_REPLACEMENTS:
        rollout = replace(record.rollout, failures=failures)
        note = f"rollout: failure {failures}: {why}"
        return _with_step(record, record.slots, rollout, at, host, note)
    stopped = f"rollout stopped after {failures} failed replacements: {why}"
    rollout = replace(record.rollout, failures=failures, stopped=stopped)
    members = set(record.slots)
    if len(members) > record.target:
        members.discard(slot)
    slots = _without_surplus(service, fleet, replace(record, slots=sorted(members)))
    return _with_step(record, slots, rollout, at, host, stopped)


def resume(
    service: str, fleet: FleetState, why: str, *, at: datetime, host: str
) -> ServiceRecord | None:
    """The record with its stopped rollout resumed; None if no rollout has stopped."""
    record = fleet.services.get(service)
    if record is None or record.rollout is None or not record.rollout.stopped:
        return None
    fresh = Rollout(config=record.config_id)
    return _with_step(record, record.slots, fresh, at, host, f"rollout: goes on for {why}")


def _with_step(
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
        ranks=rerank(record, slots, record.target),
        rollout=rollout,
        moves=[slot for slot in record.moves if slot in slots and rollout is not None],
        restarts=[slot for slot in record.restarts if slot in slots and rollout is not None],
        decision=Decision(at=at, host=host, replicas=record.target, error=note, step=True),
    )


def _cause(service: str, fleet: FleetState, slots: Iterable[int]) -> str:
    """The causes for which the outdated `slots` are to be replaced, in words."""
    sorted_slots, chosen = fleet.service_slots(service), set(slots)
    drained = sorted(
        name for name in fleet.draining() if not chosen.isdisjoint(sorted_slots.on(name))
    )
    named = ", ".join(drained[:_NAMED_HOSTS]) + (", …" if len(drained) > _NAMED_HOSTS else "")
    causes = (
        (named, f"the drain of {named}"),
        (not chosen.isdisjoint(fleet.services[service].moves), "a rebalance"),
        (not chosen.isdisjoint(fleet.services[service].restarts), "a restart"),
        (not chosen.isdisjoint(sorted_slots.outdated_config()), "a new config"),
    )
    return " and ".join(words for holds, words in causes if holds)


def _room(
    service: str, fleet: FleetState, record: ServiceRecord, old: list[int], count: int, at: datetime
) -> int:
    """How many of `count` extra instances the hosts can take. If an instance must leave its host,
    as many as would be placed; else as many as fit beside the targets of all services.
    """
    slots = fleet.slots_of(service)
    if any(_must_move(record, fleet, slot, slots[slot]) for slot in old):
        extra = fleet.free_slots(service, count, beside=set(record.slots))
        return len(place(service, fleet, record, extra, at=at))
    able, _ = able_hosts(service, fleet, record)
    if any(host_port(record.config, host, service) for host in able.values()):
        return 0
    sharing = rivals(fleet, able)
    granted = sum(len(item.slots) for name, item in fleet.services.items() if name in sharing)
    total = sum(holds(name, host, fleet) for name, host in able.items())
    free = sum(max(0, room(name, host, fleet)) for name, host in able.items())
    return max(0, min(count, free, total - granted))


def _making_room(service: str, fleet: FleetState, old: list[int]) -> list[int]:
    """The slots among `old` whose end makes room for a replacement. Excluded are those on a host
    that takes no slots, unless its drain is forced, and those that are only to be moved.
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


def _no_moves(service: str, fleet: FleetState, at: datetime, host: str) -> ServiceRecord | None:
    """The record without its moves, as there is no room for them; None while there may be room
    soon: instances drain, or a service before this one by name has moves as well.
    """
    record = fleet.services[service]
    if not record.moves or any(
        fleet.service_slots(name).outside or (other.moves and name < service)
        for name, other in fleet.services.items()
    ):
        return None
    note = f"rebalance: no room any more to move slots {', '.join(map(str, record.moves))}"
    return _with_step(replace(record, moves=[]), record.slots, record.rollout, at, host, note)


def _must_move(record: ServiceRecord, fleet: FleetState, slot: int, claim: SlotRecord) -> bool:
    """Whether the instance is to be replaced on another host, whatever its config."""
    order = fleet.orders.get(claim.host)
    return slot in record.moves or (order is not None and order.draining)


def _without_surplus(service: str, fleet: FleetState, record: ServiceRecord) -> list[int]:
    """The set without the extra slots of a rollout that ended early, as when a drain is cancelled.
    Slots that do not serve yet are removed, if there are enough. An unreadable slot may serve.
    """
    surplus = len(record.slots) - record.target
    if surplus <= 0:
        return record.slots
    idle = (fleet.service_slots(service).unready | fleet.orphans(service)).intersection(
        record.slots
    )
    idle -= fleet.unreadable.get(service, frozenset())
    removed = idlest(fleet, service, idle if len(idle) >= surplus else record.slots, surplus)
    return sorted(set(record.slots) - set(removed))


def _homeless(
    service: str,
    fleet: FleetState,
    record: ServiceRecord,
    waiting: AbstractSet[int],
    at: datetime,
) -> bool:
    """Whether no host has room for any of the `waiting` slots, nor will have soon."""
    slots, orphans = fleet.service_slots(service), fleet.orphans(service)
    draining, held = slots.outside - orphans, waiting - slots.free - orphans
    return not (draining or held or place(service, fleet, record, waiting, at=at))


def _living(record: SlotRecord | None) -> bool:
    return record is not None and record.info.state not in ENDED
