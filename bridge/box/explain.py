"""The fleet told to people: its hosts, a service's decisions, and what a request would do. Pure."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from itertools import pairwise
from typing import Final

from msgspec.structs import replace

from bridge.box import rollout
from bridge.box.authority import Asked, decide
from bridge.box.evacuation import Forecast
from bridge.box.lifecycle import ENDED
from bridge.box.model import FleetState, HostOrder, HostRecord, ServiceRecord
from bridge.box.placement import Board, Spare, avoided, host_port, place, room, unfit
from bridge.operations import (
    Candidate,
    Entry,
    Fate,
    Host,
    Order,
    PlannedSlot,
    PlanResponse,
)
from bridge.protocol import format_time

_NOTE: Final = 500  # letters of a note, so that 64 decisions fit a reply
_NOTICES: Final = 20  # of one host
_UNREADABLE: Final = (
    "what it says of itself cannot be read: it runs a newer Box, or its record is damaged; nothing "
    "is placed on it"
)


# ── the hosts ────────────────────────────────────────────────────────────────────────────


def names(fleet: FleetState) -> list[str]:
    """The live hosts, those that hold slots though they are dead, and those under an order."""
    return sorted({*fleet.hosts, *fleet.unreadable_hosts, *fleet.used, *fleet.orders})


def hosts(fleet: FleetState, wanted: Iterable[str], *, at: datetime) -> list[Host]:
    """What there is to say of the `wanted` hosts; the forecast is made once, if one is drained."""
    forecast = functools.cache(lambda: Forecast(fleet, at=at))
    return [_host(name, fleet, fleet.housed(name), forecast) for name in wanted]


def _host(
    name: str, fleet: FleetState, held: Mapping[str, int], forecast: Callable[[], Forecast]
) -> Host:
    record, order = fleet.hosts.get(name), fleet.orders.get(name)
    draining = order is not None and order.draining and bool(held)
    host = Host(
        name=name,
        live=record is not None,
        used=sum(held.values()),
        services=dict(sorted(held.items())),
        order=None if order is None else _order(order),
        stuck=_stuck(fleet, held) if draining else {},
        short=forecast().short(name) if draining else {},
    )
    if name in fleet.unreadable_hosts:
        return replace(host, live=True, ready=False, notices=[_UNREADABLE])
    return host if record is None else _known(host, record)


def _known(host: Host, record: HostRecord) -> Host:
    return replace(
        host,
        notices=[notice[:_NOTE] for notice in record.notices[:_NOTICES]],
        closing=record.closing,
        ready=record.ready,
        labels=dict(sorted(record.labels.items())),
        version=record.version,
        runtime=record.runtime,
        cpus=record.cpus,
        memory_mib=record.memory_mib,
        max_instances=record.max_instances,
        offers=sorted(record.services),
        images=list(record.images),
    )


def _order(order: HostOrder) -> Order:
    return Order(
        draining=order.draining, forced=order.forced, reason=order.reason[:_NOTE], at=order.at
    )


def _stuck(fleet: FleetState, held: Mapping[str, int]) -> dict[str, str]:
    records = ((service, fleet.services.get(service)) for service in held)
    return {
        service: record.rollout.stopped[:_NOTE]
        for service, record in records
        if record is not None and record.rollout is not None and record.rollout.stopped
    }


# ── the decisions ────────────────────────────────────────────────────────────────────────


def history(records: Iterable[ServiceRecord]) -> list[Entry]:
    """A service's records, oldest first, as decisions."""
    ordered = list(records)
    first = [_entry(None, record) for record in ordered[:1]]
    return first + [_entry(before, after) for before, after in pairwise(ordered)]


def _entry(before: ServiceRecord | None, after: ServiceRecord) -> Entry:
    entry = Entry(version=after.version, after=after.target)
    if before is not None:
        entry = replace(
            entry,
            before=before.target,
            added=sorted(set(after.slots) - set(before.slots)),
            removed=sorted(set(before.slots) - set(after.slots)),
            reconfigured=before.config != after.config,
        )
    elif after.version == 1:  # there was nothing before it
        entry = replace(entry, before=0, added=after.slots)
    if (decision := after.decision) is None:
        return entry
    return replace(
        entry,
        at=decision.at,
        host=decision.host,
        request_id=decision.request_id,
        replicas=decision.replicas,
        note=(decision.error or "")[:_NOTE],
    )


# ── what a request would do ──────────────────────────────────────────────────────────────


def plan(asked: Asked, fleet: FleetState) -> PlanResponse:
    """What the request would come to, decided as it would be, and placed as it would be."""
    service = asked.request.service
    before = fleet.services.get(service) or ServiceRecord()
    verdict = decide(asked, fleet)
    after = verdict.record or before
    response = verdict.response
    board = Board(service, fleet, after, Spare(fleet))
    off = _kept_off(after, asked.at)
    return PlanResponse(
        service=service,
        replicas=asked.request.replicas,
        accepted=response.accepted,
        before=before.target,
        target=response.target_replicas,
        error=response.error,
        slots=_slots(service, fleet, before, after, asked.at),
        hosts=[
            _candidate(service, fleet, after, board, name, off.get(name, []))
            for name in sorted(fleet.hosts)
        ],
    )


_ORDER: Final = tuple(Fate)


def _slots(
    service: str, fleet: FleetState, before: ServiceRecord, after: ServiceRecord, at: datetime
) -> list[PlannedSlot]:
    """Every slot and its fate, those first that change."""
    claims = fleet.slots_of(service)
    free = {slot for slot in after.slots if slot not in claims or fleet.is_orphan(claims[slot])}
    placed = place(service, fleet, after, free, at=at)
    told = replace(fleet, services={**fleet.services, service: after}, census=None)
    moving = set(rollout.outdated(service, told))
    found = []
    for slot in after.slots:
        if slot in free:
            fate = Fate.COMES if slot in placed else Fate.WAITS
            found.append(PlannedSlot(slot=slot, fate=fate, host=placed.get(slot, "")))
        else:
            fate = Fate.MOVES if slot in moving else Fate.STAYS
            found.append(_there(fleet, service, slot, fate))
    going = (claims.keys() | set(before.slots)) - set(after.slots)
    found += [_there(fleet, service, slot, Fate.GOES) for slot in going if slot in claims]
    return sorted(found, key=lambda item: (_ORDER.index(item.fate), item.slot))


def _there(fleet: FleetState, service: str, slot: int, fate: Fate) -> PlannedSlot:
    claim = fleet.slots_of(service)[slot]
    alive = claim.info.state not in ENDED
    return PlannedSlot(
        slot=slot, fate=fate, host=claim.host, instance_id=claim.info.id if alive else ""
    )


def _kept_off(record: ServiceRecord, at: datetime) -> dict[str, list[int]]:
    """Which slots of the set are kept off which hosts."""
    off, found = avoided(record, at), dict[str, list[int]]()
    for slot in record.slots:
        for name in off.get(slot, ()):
            found.setdefault(name, []).append(slot)
    return found


def _candidate(
    service: str, fleet: FleetState, record: ServiceRecord, board: Board, name: str, off: list[int]
) -> Candidate:
    if why := _why_not(service, fleet, record, name):
        return Candidate(name=name, room=0, why_not=why)
    slots = ", ".join(map(str, off[:20]))
    kept_off = f"kept off it, as they failed there: slots {slots}" if off else ""
    return Candidate(name=name, room=board.left(name), why_not=kept_off)


def _why_not(service: str, fleet: FleetState, record: ServiceRecord, name: str) -> str:
    """Why the host could not take an instance; empty if it could."""
    host = fleet.hosts[name]
    if service not in host.services and not (record.on_request and host.images):
        return "it does not offer the service"
    if host.closing:
        return "it is about to leave"
    if not host.ready:
        return "its Box is not ready: `box-bridge hosts` says why"
    if why := unfit(service, host, record.config):
        return f"unfit: {why}"
    if (order := fleet.orders.get(name)) is not None:
        return _ordered(order)
    if room(name, host, fleet) <= 0:
        return f"full: {fleet.used.get(name, 0)} of {host.max_instances}"
    port = host_port(record.config, host, service)
    if port and name in fleet.tally(service).hosts:
        return f"port {port} is taken by its instance there"
    return ""


def _ordered(order: HostOrder) -> str:
    since = f" since {format_time(order.at)}" if order.at else ""
    reason = f": {order.reason[:_NOTE]}" if order.reason else ""
    return f"{'being drained' if order.draining else 'cordoned'}{since}{reason}"
