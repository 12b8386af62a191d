"""The fleet told to people: its hosts and services, decisions, what a request would do. Pure."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from datetime import datetime
from itertools import pairwise
from typing import Final

from msgspec.structs import replace

from bridge.admin_protocol import (
    Candidate,
    Entry,
    Fate,
    Host,
    Order,
    PlannedSlot,
    PlanResponse,
    Service,
)
from bridge.box.scheduler import diagnosis, rollout
from bridge.box.scheduler.admission import Admission, AdmissionRequest
from bridge.box.scheduler.diagnosis import Exclusion
from bridge.box.scheduler.drain_forecast import DrainForecast
from bridge.box.scheduler.placement import HostRoom, Placement, host_port, place, room, run_blocker
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.lifecycle import ENDED
from bridge.box.state.records import (
    Decision,
    HostOrder,
    HostRecord,
    Request,
    ServiceRecord,
    SlotRecord,
)
from bridge.protocol import InstanceState, format_time

_NOTE: Final = 500  # letters of a note, so that a service's decisions fit a reply
_NOTICES: Final = 20  # of one host
_LOOKS: Final = 20_000  # at slots and hosts, for one page of services
_UNREADABLE: Final = (
    "what it says of itself cannot be read: it runs a newer Box, or its record is damaged; nothing "
    "is placed on it"
)


# ── the hosts ────────────────────────────────────────────────────────────────────────────


def names(fleet: FleetState) -> list[str]:
    """The live hosts, those that hold slots though they are dead, and those under an order."""
    return sorted({*fleet.hosts, *fleet.unreadable_hosts, *fleet.used, *fleet.orders})


def hosts(fleet: FleetState, wanted: Iterable[str], *, at: datetime) -> list[Host]:
    """What there is to say of the `wanted` hosts; the forecast is made once, if one is drained,
    and of each service that dead ones hold it is found out once what has no room.
    """
    forecast = functools.cache(lambda: DrainForecast(fleet, at=at))

    @functools.cache
    def homeless(service: str) -> AbstractSet[int]:
        return diagnosis.find(service, fleet, at=at).homeless

    return [_host(name, fleet, fleet.slot_counts(name), forecast, homeless) for name in wanted]


def _host(
    name: str,
    fleet: FleetState,
    held: Mapping[str, int],
    forecast: Callable[[], DrainForecast],
    homeless: Callable[[str], AbstractSet[int]],
) -> Host:
    record, order = fleet.hosts.get(name), fleet.orders.get(name)
    draining = order is not None and order.draining and bool(held)
    short = forecast().short(name) if draining else {}
    if order is not None and order.draining and order.forced:
        short |= forecast().waiting(name)
    host = Host(
        name=name,
        live=record is not None,
        used=sum(held.values()),
        services=dict(sorted(held.items())),
        order=None if order is None else _order(order),
        stuck=_stuck(fleet, held) if draining else {},
        short=short,
    )
    if name in fleet.unreadable_hosts:
        return replace(host, live=True, ready=False, notices=[_UNREADABLE])
    if record is not None:
        return _known(host, record)
    return host if draining else replace(host, short=_stranded(name, fleet, held, homeless))


def _stranded(
    name: str,
    fleet: FleetState,
    held: Iterable[str],
    homeless: Callable[[str], AbstractSet[int]],
) -> dict[str, int]:
    """How much of what a dead host held has no room elsewhere, by service."""
    counts = ((item, len(fleet.service_slots(item).on(name) & homeless(item))) for item in held)
    return {service: count for service, count in counts if count}


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


def _stuck(fleet: FleetState, held: Iterable[str]) -> dict[str, str]:
    return {name: why[:_NOTE] for name, why in diagnosis.stopped(fleet, held).items()}


# ── the services ─────────────────────────────────────────────────────────────────────────


def service_names(fleet: FleetState) -> list[str]:
    """The services of which there is a record, that hold slots, or that a live host offers."""
    offered = fleet.slot_index.offers
    held = (name for name, claims in fleet.slots.items() if claims)
    return sorted({*fleet.services, *fleet.unreadable_services, *held, *offered})


def services(fleet: FleetState, wanted: Iterable[str], *, at: datetime) -> list[Service]:
    """What there is to say of the `wanted` services: of as many of them, one at least, as a loop
    with a lease to renew has the time for.
    """
    found, looks = list[Service](), 0
    for name in wanted:
        if looks > _LOOKS:
            break
        looks += len(fleet.slots_of(name)) + len(fleet.offering(name))
        found.append(_service(name, fleet, at))
    return found


def _service(name: str, fleet: FleetState, at: datetime) -> Service:
    lacks = diagnosis.find(name, fleet, at=at)
    states = Counter(
        _state(claim, fleet)
        for claim in fleet.slots_of(name).values()
        if claim.info.state not in ENDED
    )
    ready, busy = states[InstanceState.READY], states[InstanceState.BUSY]
    return Service(
        name=name,
        wanted=lacks.wanted,
        ready=ready,
        busy=busy,
        other=states.total() - ready - busy,
        missing=lacks.sentences(),
        replacing=len(rollout.outdated(name, fleet)) if name in fleet.services else 0,
        stopped=lacks.stopped[:_NOTE],
    )


def _state(claim: SlotRecord, fleet: FleetState) -> InstanceState | None:
    """The state of who lives in the slot; None if its host does not live."""
    alive = diagnosis.is_alive(claim.host, claim.host_id, fleet)
    return claim.info.state if alive else None


# ── the decisions ────────────────────────────────────────────────────────────────────────


def history(records: Iterable[ServiceRecord]) -> list[Entry]:
    """A service's records, oldest first, as decisions; before them the requests that the newest
    record still knows of.
    """
    ordered = list(records)
    if not ordered:
        return []
    oldest, newest = ordered[0], ordered[-1]
    forgotten = [_request(item) for item in newest.requests if item.version < oldest.version]
    told = [_entry(None, oldest), *(_entry(*both) for both in pairwise(ordered))]
    return forgotten + told


def _request(request: Request) -> Entry:
    entry = Entry(
        version=request.version,
        before=request.before,
        after=request.after,
        reconfigured=request.reconfigured,
    )
    return _decided(entry, request.decision)


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
    return entry if after.decision is None else _decided(entry, after.decision)


def _decided(entry: Entry, decision: Decision) -> Entry:
    return replace(
        entry,
        at=decision.at,
        host=decision.host,
        request_id=decision.request_id,
        replicas=None if decision.step else decision.replicas,
        note=(decision.error or "")[:_NOTE],
    )


# ── what a request would do ──────────────────────────────────────────────────────────────


def plan(asked: AdmissionRequest, admission: Admission, fleet: FleetState) -> PlanResponse:
    """The effect that a request with this admission would have, and its placement."""
    service = asked.request.service
    before = fleet.services.get(service) or ServiceRecord()
    after, response = admission.record or before, admission.response
    board = Placement(service, fleet, after, HostRoom(fleet))
    off = {item.host: item for item in diagnosis.kept_off(after, asked.at)}
    services = {**fleet.services, service: after}
    index = fleet.slot_index.with_services(services, service)
    planned = replace(fleet, services=services, slot_index=index)
    moving = set(rollout.outdated(service, planned))
    return PlanResponse(
        service=service,
        replicas=asked.request.replicas,
        accepted=response.accepted,
        before=before.target,
        target=response.target_replicas,
        error=response.error,
        slots=_slots(service, fleet, before, after, moving, asked.at),
        hosts=[
            _candidate(service, fleet, after, board, name, off.get(name))
            for name in sorted(
                {*fleet.hosts, *fleet.unreadable_hosts, *fleet.service_slots(service).hosts}
            )
        ],
        stuck=_why_stuck(service, planned, moving, asked) if moving else "",
    )


def _why_stuck(
    service: str, fleet: FleetState, moving: AbstractSet[int], asked: AdmissionRequest
) -> str:
    """Why no instance is being replaced though some are to be; empty if one is, or will be."""
    if stopped := diagnosis.stopped(fleet, [service]):
        return stopped[service][:_NOTE]
    tally, orphans = fleet.service_slots(service), fleet.orphans(service)
    homeless = diagnosis.find(service, fleet, at=asked.at).homeless
    coming = (tally.unready | (orphans & tally.wanted)) - moving - homeless
    under_way = coming or tally.outside - orphans
    if under_way or rollout.next_step(service, fleet, at=asked.at, host=asked.host) is not None:
        return ""
    return "no host has room for a replacement, and none of the old ones can go first"


_ORDER: Final = tuple(Fate)


def _slots(
    service: str,
    fleet: FleetState,
    before: ServiceRecord,
    after: ServiceRecord,
    moving: AbstractSet[int],
    at: datetime,
) -> list[PlannedSlot]:
    """Every slot and its fate, those first that change."""
    claims = fleet.slots_of(service)
    free = {slot for slot in after.slots if slot not in claims or fleet.is_orphan(claims[slot])}
    placed = place(service, fleet, after, free, at=at)
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
    if claim.info.state not in ENDED:
        return PlannedSlot(slot=slot, fate=fate, host=claim.host, instance_id=claim.info.id)
    return PlannedSlot(slot=slot, fate=Fate.FAILS if fate is Fate.STAYS else fate, host=claim.host)


def _candidate(
    service: str,
    fleet: FleetState,
    record: ServiceRecord,
    board: Placement,
    name: str,
    off: Exclusion | None,
) -> Candidate:
    if name in fleet.unreadable_hosts:
        return Candidate(name=name, room=0, why_not=_UNREADABLE)
    if name not in fleet.hosts:
        count = fleet.service_slots(service).hosts[name]
        return Candidate(name=name, room=0, why_not=f"dead, and still holds {count} of it")
    if why := _why_not(service, fleet, record, name):
        return Candidate(name=name, room=0, why_not=why)
    if off is None:
        return Candidate(name=name, room=board.left(name))
    slots, until = ", ".join(map(str, off.slots[:20])), format_time(off.until)
    kept_off = f"kept off it until {until}, as they failed there: slots {slots}"
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
    if why := run_blocker(service, host, record.config):
        return f"unfit: {why}"
    if (order := fleet.orders.get(name)) is not None:
        return _ordered(order)
    if room(name, host, fleet) <= 0:
        return f"full: {fleet.used.get(name, 0)} of {host.max_instances}"
    port = host_port(record.config, host, service)
    if port and name in fleet.service_slots(service).hosts:
        return f"port {port} is taken by its instance there"
    return ""


def _ordered(order: HostOrder) -> str:
    since = f" since {format_time(order.at)}" if order.at else ""
    reason = f": {order.reason[:_NOTE]}" if order.reason else ""
    return f"{'being drained' if order.draining else 'cordoned'}{since}{reason}"
