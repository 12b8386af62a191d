"""The missing instances of a service, and the reasons, by the fleet's records. Pure.

A list of instances does not show the missing ones. A diagnosis looks at the slots without a serving
instance, at the holders of the others, and, while slots wait for a host, at the hosts that could
run the service. It never looks at the rest of the fleet, as a watching client asks every second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from typing import Final

from msgspec import Struct

from bridge.box.scheduler.host_capacity import capacity_for
from bridge.box.scheduler.placement import host_port, place, room
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.records import ServiceRecord, SlotRecord
from bridge.protocol import InstanceState

OTHERS: Final = "other services"
"""The key of a notice that more services have problems; no service can have this name."""

_NAMED: Final = 5  # hosts, or slots, that are named one by one
_REASON_LENGTH: Final = 500  # characters
_FAILURE_LENGTH: Final = 200  # characters of a failure's reason
_REPORTED: Final = 20  # services in one answer
_PLACED: Final = 50  # services whose slots are placed for one answer


class Exclusion(Struct, frozen=True, kw_only=True):
    """Slots that are not placed on a host until a time, as their instances kept failing there."""

    host: str
    slots: Sequence[int]
    until: datetime


class Failure(Struct, frozen=True, kw_only=True):
    """The failure of one instance; its host makes the next one after `wait` seconds, if known."""

    instance_id: str
    why: str
    wait: float | None

    def __str__(self) -> str:
        why = f": {self.why}" if self.why else ""
        after = "" if self.wait is None else f"; next try in {self.wait:.0f} s"
        return f"{why}{after}; `box-bridge logs {self.instance_id}`"


class Shortfall(Struct, frozen=True, kw_only=True):
    """The missing instances of a service: of `wanted` ones, `serving` serve on live hosts.

    - `slots`: the size of the set, which exceeds `wanted` while instances are being replaced.
    - `homeless`: the slots without a host; `full` is the reason.
    - `failed`: by host, how many slots have no living instance until the host retries. Only the
      host knows how often an instance has failed. `failure` is the one whose retry comes first.
    - `dead`: by dead host, how many slots wait to be taken over; these may be homeless as well.
    - `exclusions`: the slots that are kept off hosts for a time.
    - `stopped`: the reason why no further instance is replaced, or empty.

    The other slots boot, or are about to be claimed.
    """

    wanted: int = 0
    serving: int = 0
    slots: int = 0
    homeless: AbstractSet[int] = frozenset()
    full: str = ""
    failed: Mapping[str, int] = {}
    failure: Failure | None = None
    dead: Mapping[str, int] = {}
    exclusions: Sequence[Exclusion] = ()
    stopped: str = ""
    unreadable: bool = False

    def sentences(self) -> list[str]:
        """The missing instances and the reasons, for people; empty if the others boot."""
        sentences = ["its record cannot be read by this Box"] if self.unreadable else []
        of = f"of {self.slots}"
        if count := len(self.homeless):
            sentences.append(f"{count} {of} {_has(count)} no room: {self.full}")
        if count := sum(self.failed.values()):
            sentences.append(f"{count} {of} failed on {_some(self.failed)}{self.failure or ''}")
        if count := sum(self.dead.values()):
            hosts = f"{_some(self.dead)}, which {_is(len(self.dead))} dead"
            sentences.append(f"{count} {_is(count)} on {hosts}")
        return sentences + [_exclusion(item) for item in self.exclusions[:_NAMED]]


def shortfall(service: str, fleet: FleetState, *, at: datetime) -> Shortfall:
    """The missing instances of `service` at the time `at`."""
    record = fleet.services.get(service)
    if record is None:
        return Shortfall(unreadable=service in fleet.unreadable_services)
    slots, claims = fleet.service_slots(service), fleet.slots_of(service)
    dead = _dead(service, fleet)
    away = set[int]().union(*dead.values())
    homeless, placed = _placing(service, fleet, record, at)
    failed = [
        claims[slot]
        for slot in sorted(slots.unready - slots.free - away)
        if claims[slot].info.state is InstanceState.FAILED
    ]
    return Shortfall(
        wanted=record.target,
        slots=len(record.slots),
        serving=len(slots.wanted) - len(slots.unready | away),
        homeless=homeless,
        full=_full(service, fleet, record, placed) if homeless else "",
        failed=dict(sorted(Counter(claim.host for claim in failed).items())),
        failure=_next_retry(failed, at),
        dead={name: len(members) for name, members in sorted(dead.items())},
        exclusions=exclusions(record, at) if record.avoid else (),
        stopped=_stop_reason(record),
    )


def notices(fleet: FleetState, services: Iterable[str], *, at: datetime) -> dict[str, str]:
    """The problems of `services`, a line each. Bounded: in a large fleet with many problems the
    answer has some of them, and a notice that there are others.
    """
    lines, placed = dict[str, str](), 0
    for service in services:
        if _is_calm(service, fleet):
            continue
        placed += bool(fleet.vacant(service))
        if len(lines) == _REPORTED or placed > _PLACED:
            lines[OTHERS] = "there may be more problems: see `box-bridge services`"
            break
        lacks = shortfall(service, fleet, at=at)
        stopped = [lacks.stopped[:_REASON_LENGTH]] if lacks.stopped else []
        if line := "; ".join(stopped + lacks.sentences()):
            lines[service] = line
    return lines


def is_alive(host: str, host_id: str, fleet: FleetState) -> bool:
    """Whether the holder of slots is live, by its lease. A host with an unreadable record is."""
    live = fleet.hosts.get(host)
    return host in fleet.unreadable_hosts if live is None else live.host_id == host_id


def stop_reasons(fleet: FleetState, services: Iterable[str]) -> dict[str, str]:
    """The reason why the rollout has stopped, for those of `services` where it has."""
    records = ((service, fleet.services.get(service)) for service in services)
    return {
        service: why
        for service, record in records
        if record is not None and (why := _stop_reason(record))
    }


def _is_calm(service: str, fleet: FleetState) -> bool:
    """Whether the service has no problem: a cheap pre-check, which most services pass."""
    record = fleet.services.get(service)
    if record is None:
        return service not in fleet.unreadable_services
    troubled = fleet.service_slots(service).unready or record.avoid or _stop_reason(record)
    return not (troubled or _dead(service, fleet))


def _stop_reason(record: ServiceRecord) -> str:
    return record.rollout.stopped if record.rollout is not None else ""


def _dead(service: str, fleet: FleetState) -> dict[str, set[int]]:
    """The slots of the set, by holders whose lease has expired, whether or not the slots may be
    taken over yet.
    """
    slots, dead = fleet.service_slots(service), dict[str, set[int]]()
    for (name, host_id), claimed in slots.by_holder.items():
        if is_alive(name, host_id, fleet) or not (members := claimed & slots.wanted):
            continue
        shown = f"an earlier {name}" if name in fleet.hosts else name
        dead.setdefault(shown, set()).update(members)
    return dead


def _placing(
    service: str, fleet: FleetState, record: ServiceRecord, at: datetime
) -> tuple[set[int], int]:
    """The slots without a host, and how many others a host is about to claim. A slot whose claim
    the store has lost belongs to its host.
    """
    lost = fleet.lost.get(service, {})
    waiting = {slot for slot in fleet.vacant(service) if lost.get(slot) not in fleet.hosts}
    if not waiting:
        return waiting, 0
    hosts = capacity_for(service, fleet, record).able.items()
    if all(room(name, host, fleet) <= 0 for name, host in hosts):
        return waiting, 0  # the usual case of a full fleet, and cheaper than a Placement
    placed = place(service, fleet, record, waiting, at=at)
    return waiting - placed.keys(), len(placed)


def _full(service: str, fleet: FleetState, record: ServiceRecord, placed: int) -> str:
    """Why no host takes one more instance than are `placed` already."""
    hosts = capacity_for(service, fleet, record)
    if not hosts.able:
        why = next((f": {name}: {why}" for name, why in sorted(hosts.blockers.items())), "")
        return f"no live host can run it{why}"[:_REASON_LENGTH]
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


def exclusions(record: ServiceRecord, at: datetime) -> list[Exclusion]:
    """The slots of the set that are kept off a host, by host, until the last exclusion ends."""
    until, slots = dict[str, datetime](), dict[str, list[int]]()
    wanted = set(record.slots)
    for item in record.avoid:
        if item.until > at and item.slot in wanted:
            slots.setdefault(item.host, []).append(item.slot)
            until[item.host] = max(item.until, until.get(item.host, item.until))
    return [
        Exclusion(host=name, slots=sorted(slots[name]), until=until[name]) for name in sorted(slots)
    ]


def _exclusion(item: Exclusion) -> str:
    count = len(item.slots)
    word = "slot" if count == 1 else "slots"
    return (
        f"{word} {_some(item.slots)} {_is(count)} kept off {item.host} until {_clock(item.until)}"
    )


def _clock(at: datetime) -> str:
    """A time within the next minutes, for people in any time zone."""
    return f"{at:%H:%M} UTC"


def _next_retry(failed: Sequence[SlotRecord], at: datetime) -> Failure | None:
    """The failure whose retry comes first; None without a failure."""
    if not failed:
        return None
    last = datetime.max.replace(tzinfo=UTC)
    claim = min(failed, key=lambda claim: claim.retry_at or last)
    wait = None if claim.retry_at is None else max(0.0, (claim.retry_at - at).total_seconds())
    return Failure(instance_id=claim.info.id, why=claim.failure[:_FAILURE_LENGTH], wait=wait)


def _some(items: Iterable[object]) -> str:
    names = list(map(str, items))
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _has(count: int) -> str:
    return "has" if count == 1 else "have"


def _hosts(count: int) -> str:
    return "host is" if count == 1 else "hosts are"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"
