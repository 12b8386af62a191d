"""What a service lacks, and why, as far as the fleet's records tell. Pure.

An instance that is not there is in no list of instances; here it is told of. Looked at are the
slots in which nothing serves, who holds the others, and, while slots wait for a host, the hosts
that could run the service; never the rest of the fleet, for whoever watches asks every second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime
from typing import Final

from msgspec import Struct

from bridge.box.scheduler.host_capacity import capacity_for
from bridge.box.scheduler.placement import host_port, place, room
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.records import ServiceRecord
from bridge.protocol import InstanceState

OTHERS: Final = "other services"
"""Stands for the services of which there is more to tell; no service can be named so."""

_FEW: Final = 5  # hosts, or slots, that are named one by one
_WORDS: Final = 500  # letters of a reason
_TOLD: Final = 20  # services in one answer
_PLACED: Final = 50  # services for which a host is looked for in one answer


class Exclusion(Struct, frozen=True, kw_only=True):
    """Slots that are not placed on a host until a time, as their instances kept failing there."""

    host: str
    slots: Sequence[int]
    until: datetime


class Shortfall(Struct, frozen=True, kw_only=True):
    """Of `wanted` instances so many are `serving`, on hosts that live. `slots` counts the set, in
    which there are more while instances are being replaced.

    `homeless` slots have no host, for the reason `full`. `failed` counts, by host, the slots in
    which nothing lives until the host tries again; `dead` those that hosts hold which live no more,
    until others take them over: these may be homeless as well. How often an instance has failed
    only its host knows. `stopped` says why no further instance is replaced. What is neither comes:
    it boots, or is about to be claimed.
    """

    wanted: int = 0
    serving: int = 0
    slots: int = 0
    homeless: AbstractSet[int] = frozenset()
    full: str = ""
    failed: Mapping[str, int] = {}
    dead: Mapping[str, int] = {}
    kept_off: Sequence[Exclusion] = ()
    stopped: str = ""
    unreadable: bool = False

    def sentences(self) -> list[str]:
        """What is missing and why, for people; empty if nothing is but what comes."""
        said = ["its record cannot be read by this Box"] if self.unreadable else []
        of = f"of {self.slots}"
        if count := len(self.homeless):
            said.append(f"{count} {of} {_has(count)} no room: {self.full}")
        if count := sum(self.failed.values()):
            ends = "is to be tried again" if count == 1 else "are to be tried again"
            said.append(f"{count} {of} {_has(count)} failed on {_some(self.failed)} and {ends}")
        if count := sum(self.dead.values()):
            there = "which is dead" if len(self.dead) == 1 else "which are dead"
            said.append(f"{count} {_is(count)} on {_some(self.dead)}, {there}")
        return said + [_kept(item) for item in self.kept_off[:_FEW]]


def find(service: str, fleet: FleetState, *, at: datetime) -> Shortfall:
    """What `service` lacks at `at`."""
    record = fleet.services.get(service)
    if record is None:
        return Shortfall(unreadable=service in fleet.unreadable_services)
    tally, claims, dead = (
        fleet.service_slots(service),
        fleet.slots_of(service),
        _dead(service, fleet),
    )
    away = set[int]().union(*dead.values())
    homeless, placed = _placing(service, fleet, record, at)
    failed = Counter(
        claims[slot].host
        for slot in tally.unready - tally.free - away
        if claims[slot].info.state is InstanceState.FAILED
    )
    return Shortfall(
        wanted=record.target,
        slots=len(record.slots),
        serving=len(tally.wanted) - len(tally.unready | away),
        homeless=homeless,
        full=_full(service, fleet, record, placed) if homeless else "",
        failed=dict(sorted(failed.items())),
        dead={name: len(slots) for name, slots in sorted(dead.items())},
        kept_off=kept_off(record, at) if record.avoid else (),
        stopped=_stopped(record),
    )


def tell(fleet: FleetState, services: Iterable[str], *, at: datetime) -> dict[str, str]:
    """What there is to tell of `services`, in a line each. Bounded: who asks for all of a large
    fleet in trouble hears of some, and that there are others.
    """
    told, placed = dict[str, str](), 0
    for service in services:
        if _is_calm(service, fleet):
            continue
        placed += bool(fleet.vacant(service))
        if len(told) == _TOLD or placed > _PLACED:
            told[OTHERS] = "there may be more to tell: see `box-bridge services`"
            break
        found = find(service, fleet, at=at)
        stopped = [found.stopped[:_WORDS]] if found.stopped else []
        if said := "; ".join(stopped + found.sentences()):
            told[service] = said
    return told


def is_alive(host: str, host_id: str, fleet: FleetState) -> bool:
    """Whether who claims slots as `host` lives, as far as its lease tells: one whose record cannot
    be read does.
    """
    there = fleet.hosts.get(host)
    return host in fleet.unreadable_hosts if there is None else there.host_id == host_id


def stopped(fleet: FleetState, services: Iterable[str]) -> dict[str, str]:
    """Those of `services` whose rollout has stopped, and why."""
    records = ((service, fleet.services.get(service)) for service in services)
    return {
        service: why
        for service, record in records
        if record is not None and (why := _stopped(record))
    }


def _is_calm(service: str, fleet: FleetState) -> bool:
    """Whether there is nothing to tell, at the price of a glance: so it is for most services."""
    record = fleet.services.get(service)
    if record is None:
        return service not in fleet.unreadable_services
    troubled = fleet.service_slots(service).unready or record.avoid or _stopped(record)
    return not (troubled or _dead(service, fleet))


def _stopped(record: ServiceRecord) -> str:
    return record.rollout.stopped if record.rollout is not None else ""


def _dead(service: str, fleet: FleetState) -> dict[str, set[int]]:
    """The slots of the set whose holders do not live: their leases are over, whether or not they
    may be taken over yet.
    """
    tally, found = fleet.service_slots(service), dict[str, set[int]]()
    for (name, host_id), slots in tally.by_holder.items():
        if is_alive(name, host_id, fleet) or not (wanted := slots & tally.wanted):
            continue
        told = f"an earlier {name}" if name in fleet.hosts else name
        found.setdefault(told, set()).update(wanted)
    return found


def _placing(
    service: str, fleet: FleetState, record: ServiceRecord, at: datetime
) -> tuple[set[int], int]:
    """The slots for which there is no host, and how many have one that is to claim them. One whose
    claim the store has lost is its host's.
    """
    lost = fleet.lost.get(service, {})
    waiting = {slot for slot in fleet.vacant(service) if lost.get(slot) not in fleet.hosts}
    if not waiting:
        return waiting, 0
    hosts = capacity_for(service, fleet, record).able.items()
    if all(room(name, host, fleet) <= 0 for name, host in hosts):
        return waiting, 0  # as it is for as long as a fleet is full, and a board costs more
    placed = place(service, fleet, record, waiting, at=at)
    return waiting - placed.keys(), len(placed)


def _full(service: str, fleet: FleetState, record: ServiceRecord, placed: int) -> str:
    """Why there is no host for one more instance than are `placed` already."""
    hosts = capacity_for(service, fleet, record)
    if not hosts.able:
        why = next((f": {name}: {why}" for name, why in sorted(hosts.blockers.items())), "")
        return f"no live host can run it{why}"[:_WORDS]
    open_hosts = {n: host for n, host in hosts.able.items() if host.ready and n not in fleet.orders}
    if not open_hosts:
        return "its hosts are cordoned, or not ready"
    places = sum(host.max_instances for host in open_hosts.values())
    left = sum(max(0, room(name, host, fleet)) for name, host in hosts.able.items()) - placed
    if left > 0 and any(host_port(record.config, host, service) for host in open_hosts.values()):
        taken = "each host takes one alone, as its port is fixed"
    elif left > 0:
        taken = "they are kept off the hosts that have some"
    else:
        taken = f"{places} of {places} places are taken"
    shut = len(hosts.able) - len(open_hosts)
    return f"{taken}, {shut} more {_hosts(shut)} cordoned or not ready" if shut else taken


def kept_off(record: ServiceRecord, at: datetime) -> list[Exclusion]:
    """Which slots of the set are kept off which hosts, and until when the last of them is."""
    until, slots = dict[str, datetime](), dict[str, list[int]]()
    wanted = set(record.slots)
    for item in record.avoid:
        if item.until > at and item.slot in wanted:
            slots.setdefault(item.host, []).append(item.slot)
            until[item.host] = max(item.until, until.get(item.host, item.until))
    return [
        Exclusion(host=name, slots=sorted(slots[name]), until=until[name]) for name in sorted(slots)
    ]


def _kept(item: Exclusion) -> str:
    count = len(item.slots)
    word = "slot" if count == 1 else "slots"
    return (
        f"{word} {_some(item.slots)} {_is(count)} kept off {item.host} until {_clock(item.until)}"
    )


def _clock(at: datetime) -> str:
    """A time within the next minutes, for people who are anywhere."""
    return f"{at:%H:%M} UTC"


def _some(things: Iterable[object]) -> str:
    named = list(map(str, things))
    more = f" and {len(named) - _FEW} more" if len(named) > _FEW else ""
    return ", ".join(named[:_FEW]) + more


def _has(count: int) -> str:
    return "has" if count == 1 else "have"


def _hosts(count: int) -> str:
    return "host is" if count == 1 else "hosts are"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"
