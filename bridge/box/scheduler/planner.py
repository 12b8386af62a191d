"""The actions that this host should take for one service, in the current state of the fleet. Pure.

Every Box plans from the same records and places slots in the same way (placement.py). If two hosts
still try to take one slot, the claim decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from bridge.box.scheduler.placement import first_at_work, place, room
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.records import Avoidance, HostIdentity, ServiceRecord, SlotRecord

MAX_FAILURES: Final = 5  # consecutive ones, then the slot goes to another host if one has room
EXCLUSION: Final = timedelta(minutes=10)  # of a slot from the host on which it failed
MAX_EXCLUSIONS: Final = 1000  # of one service: 120 kB of a record, whose size is bounded


class LocalInstance(Struct, frozen=True, kw_only=True):
    """This host's instance in a slot: it lives, is leaving, or has ended.

    After a failure the next instance may be made at `retry_at` (monotonic seconds); `failures`
    counts the consecutive ones. `settled`: the end of the instance has been published, so that the
    slot may be given up.
    """

    ended: bool
    settled: bool = True
    leaving: bool = False
    failures: int = 0
    retry_at: float = 0.0


class _SlotAction(Struct, frozen=True, kw_only=True):
    slot: int


class Claim(_SlotAction, frozen=True, kw_only=True):
    """Claim the `slot`, which is free or a dead host's, then make an instance in it."""


class Discard(_SlotAction, frozen=True, kw_only=True):
    """Withdraw the instance of a dead host and delete its claim of `slot`, which is in no set."""


class GiveUp(_SlotAction, frozen=True, kw_only=True):
    """Let another host try `slot`, in which instances keep failing here."""


class Avoid(_SlotAction, frozen=True, kw_only=True):
    """Keep `slot` off `host`, a runner on which instances keep failing in it."""

    host: str


class Make(_SlotAction, frozen=True, kw_only=True):
    """Make an instance in `slot`, which this host holds and in which none lives."""


class Drain(_SlotAction, frozen=True, kw_only=True):
    """Drain the instance in `slot`, then let the slot go."""

    reason: str


class Release(_SlotAction, frozen=True, kw_only=True):
    """Delete the claim of `slot`: nothing runs in it, and it is in no set, or for another host."""


Action = Avoid | Claim | Discard | GiveUp | Make | Drain | Release


def plan(
    service: str,
    fleet: FleetState,
    me: HostIdentity,
    local: Mapping[int, LocalInstance],
    *,
    now: float,
    at: datetime,
) -> list[Action]:
    """The actions of host `me` for `service`; `local` has its instances by slot, `now` is the time
    of the monotonic clock and `at` that of the wall clock.

    Without a record nothing is started or stopped. Drains come first: they need no wait during
    which the record could change.
    """
    record = fleet.services.get(service)
    if record is None:
        return []
    actions = _unwanted(service, record, fleet, me, local, fleet.slots_of(service))
    for slot in _own(service, fleet, me):
        mine = local.get(slot)
        if (mine is None or mine.ended) and (
            action := _next_in_slot(service, fleet, record, slot, me, mine, now, at)
        ):
            actions.append(action)
    actions += _to_avoid(service, fleet, record, me, at)
    return actions + _to_take(service, fleet, record, me, local, at)


def _own(service: str, fleet: FleetState, me: HostIdentity) -> list[int]:
    """The slots of the set that `me` holds, in order."""
    slots = fleet.service_slots(service)
    return sorted(slots.by_holder.get((me.host, me.host_id), set()) & slots.wanted)


def _next_in_slot(
    service: str,
    fleet: FleetState,
    record: ServiceRecord,
    slot: int,
    me: HostIdentity,
    mine: LocalInstance | None,
    now: float,
    at: datetime,
) -> Action | None:
    """The action for a slot of `me` without a living instance.

    A due slot gets another instance, unless another host should take it. While this host is being
    drained, another host should take it at once; a forced drain needs no other host. Otherwise
    another host should take it if the slot is due and instances keep failing here.
    """
    order, due = fleet.orders.get(me.host), _is_due(mine, now)
    drained = order is not None and order.draining and (mine is None or mine.settled)
    if order is not None and drained and order.forced:
        return Release(slot=slot)
    moves = drained or (due and _keeps_failing(mine))
    if not drained and due and not _decides(fleet, me.host):
        return Release(slot=slot) if _is_avoided(record, slot, me.host, at) else Make(slot=slot)
    if moves and _has_alternative(service, fleet, record, slot, me.host, at):
        return Release(slot=slot) if drained else GiveUp(slot=slot)
    return Make(slot=slot) if due else None


def remake(
    service: str,
    fleet: FleetState,
    me: HostIdentity,
    local: Mapping[int, LocalInstance],
    *,
    now: float,
) -> list[int]:
    """The slots of `me` whose instance has ended and is to be replaced, by the last view of the
    fleet. A host may do this while it is cut off.
    """
    record = fleet.services.get(service)
    if record is None:
        return []
    return [
        slot for slot in _own(service, fleet, me) if slot in local and _is_due(local[slot], now)
    ]


def wake_at(local: Iterable[LocalInstance], *, since: float) -> float | None:
    """The time (monotonic) at which the plan changes although the fleet does not."""
    return min(
        (item.retry_at for item in local if item.ended and item.retry_at > since), default=None
    )


def _to_reclaim(service: str, fleet: FleetState, free: AbstractSet[int]) -> dict[int, str]:
    """The live host of each `free` slot whose claim the store has lost. Its running instance wins
    over the missing record, so no other host takes the slot.
    """
    lost = fleet.lost.get(service, {})
    return {slot: host for slot, host in lost.items() if slot in free and host in fleet.hosts}


def _to_take(
    service: str,
    fleet: FleetState,
    record: ServiceRecord,
    me: HostIdentity,
    local: Mapping[int, LocalInstance],
    at: datetime,
) -> list[Action]:
    """The claims of free slots, and of slots of dead hosts, that this host should make."""
    free = fleet.vacant(service) - local.keys()
    if not free or me.host not in fleet.hosts:
        return []
    placed = _to_reclaim(service, fleet, free)
    if room(me.host, fleet.hosts[me.host], fleet) > 0:  # else it can take none
        placed |= place(service, fleet, record, free - placed.keys(), at=at)
    return [Claim(slot=slot) for slot in sorted(placed) if placed[slot] == me.host]


def _is_due(mine: LocalInstance | None, now: float) -> bool:
    """Whether a slot of this host should get an instance now."""
    return mine is None or (mine.ended and mine.retry_at <= now)


def _keeps_failing(mine: LocalInstance | None) -> bool:
    return mine is not None and mine.settled and mine.failures >= MAX_FAILURES


def _has_alternative(
    service: str,
    fleet: FleetState,
    record: ServiceRecord,
    slot: int,
    holder: str,
    at: datetime,
) -> bool:
    """Whether another host would take the slot if its `holder` gave it up."""
    without = replace(record, avoid=with_avoidance(record, slot, holder, at))
    return slot in place(service, fleet, without, [slot], at=at)


def _to_avoid(
    service: str, fleet: FleetState, record: ServiceRecord, me: HostIdentity, at: datetime
) -> list[Action]:
    """What this host decides for runners, on which instances keep failing."""
    runners = [name for name, host in fleet.hosts.items() if not host.decides]
    if not runners or first_at_work(fleet.hosts) != me.host:
        return []
    slots, claims = fleet.service_slots(service), fleet.slots_of(service)
    return [
        Avoid(slot=slot, host=runner)
        for runner in runners
        for slot in sorted(slots.on(runner) & slots.wanted)
        if claims[slot].failures >= MAX_FAILURES
        and not _is_avoided(record, slot, runner, at)
        and _has_alternative(service, fleet, record, slot, runner, at)
    ]


def _decides(fleet: FleetState, name: str) -> bool:
    host = fleet.hosts.get(name)
    return host is None or host.decides


def _is_avoided(record: ServiceRecord, slot: int, host: str, at: datetime) -> bool:
    return any((item.slot, item.host) == (slot, host) and item.until > at for item in record.avoid)


def with_avoidance(record: ServiceRecord, slot: int, host: str, at: datetime) -> list[Avoidance]:
    """The avoidances of `record` at `at`, with one more for `slot` and `host`; the newest ones if
    they are too many.
    """
    others = [
        item for item in record.avoid if item.until > at and (item.slot, item.host) != (slot, host)
    ]
    return [*others, Avoidance(slot=slot, host=host, until=at + EXCLUSION)][-MAX_EXCLUSIONS:]


def _unwanted(
    service: str,
    record: ServiceRecord,
    fleet: FleetState,
    me: HostIdentity,
    local: Mapping[int, LocalInstance],
    claims: Mapping[int, SlotRecord],
) -> list[Action]:
    """The actions that remove unwanted instances and claims.

    An instance drains if its slot is outside the set, or if another host holds the slot. A claim
    outside the set is deleted if no instance lives in it; the first host at work deletes those of
    dead hosts.
    """
    actions: list[Action] = []
    slots = fleet.service_slots(service)
    for slot, mine in local.items():
        claim = claims.get(slot)
        if claim is not None and not me.holds(claim):
            if not (mine.ended or mine.leaving):
                actions.append(Drain(slot=slot, reason=f"slot taken by {claim.host}"))
        elif slot not in slots.wanted and not (mine.ended or mine.leaving):
            actions.append(Drain(slot=slot, reason=_drain_reason(record, fleet, slot, claim, me)))
    for slot in sorted(slots.outside & slots.by_holder.get((me.host, me.host_id), set())):
        there = local.get(slot)
        if there is None or (there.ended and there.settled):
            actions.append(Release(slot=slot))
    orphans = slots.outside & fleet.orphans(service)
    if orphans and first_at_work(fleet.hosts) == me.host:
        actions += [Discard(slot=slot) for slot in sorted(orphans) if not me.holds(claims[slot])]
    return actions


def _drain_reason(
    record: ServiceRecord,
    fleet: FleetState,
    slot: int,
    claim: SlotRecord | None,
    me: HostIdentity,
) -> str:
    """Why the instance of a slot outside the set drains, for its events."""
    if claim is not None and claim.config != record.config_id:
        return "replaced: its config has changed"
    if claim is not None and slot in fleet.service_slots(claim.info.service).stale:
        return "replaced: the configuration of its host has changed"
    order = fleet.orders.get(me.host)
    if order is not None and order.draining:
        return "moved: its host is being drained"
    return "scaled down" if record.rollout is None else "moved: the hosts are being evened out"
