"""What this host should do about one service, as the fleet stands. Pure.

Every Box plans from the same records and so gives the same answer to "who takes this slot": the
host with the most free room, then the first by name. Races that remain are settled by the claim.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import Struct

from bridge.box.authority import host_port
from bridge.box.model import FleetState, HostRecord, ServiceRecord, SlotRecord
from bridge.box.runtimes.rules import refusal


class Me(Struct, frozen=True, kw_only=True):
    """The host that plans: its name and the random id of its data directory."""

    host: str
    host_id: str

    def holds(self, record: SlotRecord) -> bool:
        """Whether `record` is a claim of this host."""
        return record.host == self.host and record.host_id == self.host_id


class Local(Struct, frozen=True, kw_only=True):
    """What this host has in a slot: an instance that lives, leaves, or has ended.

    After a failure `retry_at` (monotonic seconds) is when the next instance may be made.
    `settled` says that the end has been told, so that the slot may be given up.
    """

    ended: bool
    settled: bool = True
    leaving: bool = False
    retry_at: float = 0.0


class Claim(Struct, frozen=True, kw_only=True):
    """Claim the free `slot`, then make an instance in it."""

    slot: int


class Make(Struct, frozen=True, kw_only=True):
    """Make an instance in `slot`, which this host holds and in which none lives."""

    slot: int


class Drain(Struct, frozen=True, kw_only=True):
    """Drain the instance in `slot`, then let the slot go."""

    slot: int
    reason: str


class Release(Struct, frozen=True, kw_only=True):
    """Delete the claim of `slot`: it is in no set, and nothing runs in it."""

    slot: int


Action = Claim | Make | Drain | Release


def plan(
    service: str, fleet: FleetState, me: Me, local: Mapping[int, Local], *, now: float
) -> list[Action]:
    """What `me` should do about `service`; `local` is what it has in which slot.

    A missing record is no order: nothing is started or stopped for it. Drains come first: they
    ask for no wait, during which the record could change.
    """
    record = fleet.services.get(service)
    if record is None:
        return []
    slots = fleet.slots_of(service)
    actions = _unwanted(record, slots, me, local)
    for slot in record.slots:
        claim = slots.get(slot)
        if claim is not None and me.holds(claim):
            actions += _held(slot, local.get(slot), now)
    free = [slot for slot in record.slots if slot not in slots and slot not in local]
    free = [slot for slot in free if slot not in fleet.unreadable.get(service, ())]
    back = _to_reclaim(service, fleet, free)
    placed = back | place(service, fleet, record, [slot for slot in free if slot not in back])
    actions += [Claim(slot=slot) for slot in free if placed.get(slot) == me.host]
    return actions


def remake(
    service: str, fleet: FleetState, me: Me, local: Mapping[int, Local], *, now: float
) -> list[int]:
    """The slots of `me` whose instance has ended and is to be replaced, as far as was known when
    the fleet was last seen. That much a host may do while it is cut off.
    """
    record = fleet.services.get(service)
    if record is None:
        return []
    return [
        slot
        for slot, claim in fleet.slots_of(service).items()
        if slot in record.slots
        and me.holds(claim)
        and slot in local
        and _held(slot, local[slot], now)
    ]


def wake_at(local: Iterable[Local], *, now: float) -> float | None:
    """When (monotonic) a plan may come out differently although no record has changed."""
    return min(
        (item.retry_at for item in local if item.ended and item.retry_at > now), default=None
    )


def able_hosts(service: str, fleet: FleetState, record: ServiceRecord) -> dict[str, HostRecord]:
    """The hosts that can run `service` with the config of its record."""
    return {
        name: host
        for name, host in fleet.offering(service).items()
        if refusal(host.runtime, record.config, cpus=host.cpus) is None
    }


def place(
    service: str, fleet: FleetState, record: ServiceRecord, free: Iterable[int]
) -> dict[int, str]:
    """Which host should take each of the `free` slots; those for which there is no room are not
    in the result. Each goes where most room is left, of equals to the first by name.
    """
    hosts = able_hosts(service, fleet, record)
    room = {name: host.max_instances - fleet.used.get(name, 0) for name, host in hosts.items()}
    for claim in fleet.slots_of(service).values():
        host = hosts.get(claim.host)
        if host is not None and host_port(record.config, host, service):
            room[claim.host] = 0  # the port is taken
    placed: dict[int, str] = {}
    for slot in sorted(free):
        best = min(room, key=lambda name: (-room[name], name), default=None)
        if best is None or room[best] <= 0:
            break
        placed[slot] = best
        room[best] = 0 if host_port(record.config, hosts[best], service) else room[best] - 1
    return placed


def _to_reclaim(service: str, fleet: FleetState, free: Iterable[int]) -> dict[int, str]:
    """Those of the `free` slots whose claims the store has lost, and the live hosts they are of:
    what runs there wins over a record that is missing, so nobody else takes them.
    """
    lost = fleet.lost.get(service, {})
    return {slot: lost[slot] for slot in free if lost.get(slot, "") in fleet.hosts}


def _held(slot: int, mine: Local | None, now: float) -> list[Action]:
    if mine is None or (mine.ended and mine.retry_at <= now):
        return [Make(slot=slot)]
    return []


def _unwanted(
    record: ServiceRecord, slots: Mapping[int, SlotRecord], me: Me, local: Mapping[int, Local]
) -> list[Action]:
    """What runs outside the set, or in a slot that another host holds, must go."""
    actions: list[Action] = []
    wanted = set(record.slots)
    for slot, mine in local.items():
        claim = slots.get(slot)
        if claim is not None and not me.holds(claim):
            if not (mine.ended or mine.leaving):
                actions.append(Drain(slot=slot, reason=f"slot taken by {claim.host}"))
        elif slot not in wanted and not (mine.ended or mine.leaving):
            differs = claim is not None and claim.config != record.config_id
            reason = "replaced: its config has changed" if differs else "scaled down"
            actions.append(Drain(slot=slot, reason=reason))
    for slot, claim in slots.items():
        there = local.get(slot)
        if (
            slot not in wanted
            and me.holds(claim)
            and (there is None or (there.ended and there.settled))
        ):
            actions.append(Release(slot=slot))
    return actions
