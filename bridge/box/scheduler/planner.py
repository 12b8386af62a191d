"""What this host should do about one service, as the fleet stands. Pure.

Every Box plans from the same records and so gives the same answer to "who takes this slot"
(placement.py). Races that remain are settled by the claim.
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

MAX_FAILURES: Final = 5  # running, and a slot is let go where another host can try
KEPT_OFF: Final = timedelta(minutes=10)  # of the host on which it failed
MAX_KEPT_OFF: Final = 1000  # slots and hosts of one service: 120 kB of a record, which has bounds


class LocalInstance(Struct, frozen=True, kw_only=True):
    """What this host has in a slot: an instance that lives, leaves, or has ended.

    After a failure `retry_at` (monotonic seconds) is when the next instance may be made;
    `failures` have there been, running. `settled` says that the end has been told, so that the
    slot may be given up.
    """

    ended: bool
    settled: bool = True
    leaving: bool = False
    failures: int = 0
    retry_at: float = 0.0


class Claim(Struct, frozen=True, kw_only=True):
    """Claim the `slot`, which is free or a dead host's, then make an instance in it."""

    slot: int


class Discard(Struct, frozen=True, kw_only=True):
    """Withdraw the instance of a dead host and delete its claim of `slot`, which is in no set."""

    slot: int


class GiveUp(Struct, frozen=True, kw_only=True):
    """Let another host try `slot`, in which instances keep failing here."""

    slot: int


class Make(Struct, frozen=True, kw_only=True):
    """Make an instance in `slot`, which this host holds and in which none lives."""

    slot: int


class Drain(Struct, frozen=True, kw_only=True):
    """Drain the instance in `slot`, then let the slot go."""

    slot: int
    reason: str


class Release(Struct, frozen=True, kw_only=True):
    """Delete the claim of `slot`: nothing runs in it, and it is in no set, or for another host."""

    slot: int


Action = Claim | Discard | GiveUp | Make | Drain | Release


def plan(
    service: str,
    fleet: FleetState,
    me: HostIdentity,
    local: Mapping[int, LocalInstance],
    *,
    now: float,
    at: datetime,
) -> list[Action]:
    """What `me` should do about `service`; `local` is what it has in which slot, `now` the
    monotonic clock and `at` the wall's.

    A missing record is no order: nothing is started or stopped for it. Drains come first: they
    ask for no wait, during which the record could change.
    """
    record = fleet.services.get(service)
    if record is None:
        return []
    slots = fleet.slots_of(service)
    actions = _unwanted(service, record, fleet, me, local, slots)
    for slot in _own(service, fleet, me):
        mine = local.get(slot)
        if (mine is None or mine.ended) and (
            again := _again(service, fleet, record, slot, me, mine, now, at)
        ):
            actions.append(again)
    return actions + _to_take(service, fleet, record, me, local, at)


def _own(service: str, fleet: FleetState, me: HostIdentity) -> list[int]:
    """The slots of the set that `me` holds, in order."""
    tally = fleet.service_slots(service)
    return sorted(tally.by_holder.get((me.host, me.host_id), set()) & tally.wanted)


def _again(
    service: str,
    fleet: FleetState,
    record: ServiceRecord,
    slot: int,
    me: HostIdentity,
    mine: LocalInstance | None,
    now: float,
    at: datetime,
) -> Action | None:
    """What becomes of a slot of `me` in which nothing lives: another instance, when one is due,
    unless another host should have it: at once if this one is to be empty, else when one is due
    and instances keep failing here. A forced drain needs no other host.
    """
    order, due = fleet.orders.get(me.host), _is_due(mine, now)
    drained = order is not None and order.draining and (mine is None or mine.settled)
    if order is not None and drained and order.forced:
        return Release(slot=slot)
    leaves = drained or (due and _keeps_failing(mine))
    if leaves and _has_alternative(service, fleet, record, slot, me, at):
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
    """The slots of `me` whose instance has ended and is to be replaced, as far as was known when
    the fleet was last seen. That much a host may do while it is cut off.
    """
    record = fleet.services.get(service)
    if record is None:
        return []
    return [
        slot for slot in _own(service, fleet, me) if slot in local and _is_due(local[slot], now)
    ]


def wake_at(local: Iterable[LocalInstance], *, since: float) -> float | None:
    """When (monotonic) a plan comes out differently from one made then, though nothing changed."""
    return min(
        (item.retry_at for item in local if item.ended and item.retry_at > since), default=None
    )


def _to_reclaim(service: str, fleet: FleetState, free: AbstractSet[int]) -> dict[int, str]:
    """Those of the `free` slots whose claims the store has lost, and the live hosts they are of:
    what runs there wins over a record that is missing, so nobody else takes them.
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
    """The slots that this host should claim: free ones, and those of dead hosts."""
    free = fleet.vacant(service) - local.keys()
    if not free or me.host not in fleet.hosts:
        return []
    placed = _to_reclaim(service, fleet, free)
    if room(me.host, fleet.hosts[me.host], fleet) > 0:  # else there is nothing to ask
        placed |= place(service, fleet, record, free - placed.keys(), at=at)
    return [Claim(slot=slot) for slot in sorted(placed) if placed[slot] == me.host]


def _is_due(mine: LocalInstance | None, now: float) -> bool:
    """Whether a slot of this host is to get an instance."""
    return mine is None or (mine.ended and mine.retry_at <= now)


def _keeps_failing(mine: LocalInstance | None) -> bool:
    return mine is not None and mine.settled and mine.failures >= MAX_FAILURES


def _has_alternative(
    service: str,
    fleet: FleetState,
    record: ServiceRecord,
    slot: int,
    me: HostIdentity,
    at: datetime,
) -> bool:
    """Whether another host would take the slot if this one let it go."""
    without = replace(record, avoid=avoiding(record, slot, me.host, at))
    return slot in place(service, fleet, without, [slot], at=at)


def avoiding(record: ServiceRecord, slot: int, host: str, at: datetime) -> list[Avoidance]:
    """What `record` avoids from `at` on if `slot` is to be kept off `host`: the newest of it."""
    others = [
        item for item in record.avoid if item.until > at and (item.slot, item.host) != (slot, host)
    ]
    return [*others, Avoidance(slot=slot, host=host, until=at + KEPT_OFF)][-MAX_KEPT_OFF:]


def _unwanted(
    service: str,
    record: ServiceRecord,
    fleet: FleetState,
    me: HostIdentity,
    local: Mapping[int, LocalInstance],
    slots: Mapping[int, SlotRecord],
) -> list[Action]:
    """What runs outside the set, or in a slot that another host holds, must go; so must claims in
    which nothing lives, and those of the dead, which the first host at work deletes.
    """
    actions: list[Action] = []
    tally = fleet.service_slots(service)
    for slot, mine in local.items():
        claim = slots.get(slot)
        if claim is not None and not me.holds(claim):
            if not (mine.ended or mine.leaving):
                actions.append(Drain(slot=slot, reason=f"slot taken by {claim.host}"))
        elif slot not in tally.wanted and not (mine.ended or mine.leaving):
            actions.append(Drain(slot=slot, reason=_why_gone(record, fleet, claim, me)))
    for slot in sorted(tally.outside & tally.by_holder.get((me.host, me.host_id), set())):
        there = local.get(slot)
        if there is None or (there.ended and there.settled):
            actions.append(Release(slot=slot))
    lost = tally.outside & fleet.orphans(service)
    if lost and first_at_work(fleet.hosts) == me.host:
        actions += [Discard(slot=slot) for slot in sorted(lost) if not me.holds(slots[slot])]
    return actions


def _why_gone(
    record: ServiceRecord, fleet: FleetState, claim: SlotRecord | None, me: HostIdentity
) -> str:
    """Why the instance of a slot outside the set goes, for its events."""
    if claim is not None and claim.config != record.config_id:
        return "replaced: its config has changed"
    order = fleet.orders.get(me.host)
    if order is not None and order.draining:
        return "moved: its host is being drained"
    return "scaled down" if record.rollout is None else "moved: the hosts are being evened out"
