"""Reports for operators: hosts, services, decisions, and the effect of a request. Pure."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from itertools import pairwise
from typing import Final

from msgspec.structs import replace

from bridge.admin_protocol import (
    Candidate,
    Entry,
    FailedSlot,
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

_NOTE_LENGTH: Final = 500  # characters, so that a service's decisions fit a reply
_NOTICES: Final = 20  # of one host
_FAILED: Final = 20  # slots of one service
_FAILURE_LENGTH: Final = 200  # characters of a failure's reason
_LOOKS: Final = 20_000  # at slots and hosts, for one page of services
_UNREADABLE: Final = (
    "its record cannot be read: it runs a newer Box, or the record is damaged; nothing is placed "
    "on the host"
)


# ── the hosts ────────────────────────────────────────────────────────────────────────────


def names(fleet: FleetState) -> list[str]:
    """The live hosts, those that hold slots though they are dead, and those under an order."""
    return sorted({*fleet.hosts, *fleet.unreadable_hosts, *fleet.used, *fleet.orders})


def hosts(fleet: FleetState, wanted: Iterable[str], *, at: datetime) -> list[Host]:
    """The reports of the `wanted` hosts."""
    # Computed once, when a host needs it.
    forecast = functools.cache(lambda: DrainForecast(fleet, at=at))

    @functools.cache
    def homeless(service: str) -> AbstractSet[int]:
        return diagnosis.shortfall(service, fleet, at=at).homeless

    return [_host(name, fleet, fleet.slot_counts(name), forecast, homeless) for name in wanted]


def _host(
    name: str,
    fleet: FleetState,
    slot_counts: Mapping[str, int],
    forecast: Callable[[], DrainForecast],
    homeless: Callable[[str], AbstractSet[int]],
) -> Host:
    record, order = fleet.hosts.get(name), fleet.orders.get(name)
    draining = order is not None and order.draining and bool(slot_counts)
    short = forecast().short(name) if draining else {}
    if order is not None and order.draining and order.forced:
        short |= forecast().waiting(name)
    host = Host(
        name=name,
        live=record is not None,
        used=sum(slot_counts.values()),
        services=dict(sorted(slot_counts.items())),
        order=None if order is None else _order(order),
        stuck=_stuck(fleet, slot_counts) if draining else {},
        short=short,
    )
    if name in fleet.unreadable_hosts:
        return replace(host, live=True, ready=False, notices=[_UNREADABLE])
    if record is not None:
        return _with_record(host, record)
    return host if draining else replace(host, short=_stranded(name, fleet, slot_counts, homeless))


def _stranded(
    name: str,
    fleet: FleetState,
    services: Iterable[str],
    homeless: Callable[[str], AbstractSet[int]],
) -> dict[str, int]:
    """How many slots of a dead host have no room elsewhere, by service."""
    counts = ((item, len(fleet.service_slots(item).on(name) & homeless(item))) for item in services)
    return {service: count for service, count in counts if count}


def _with_record(host: Host, record: HostRecord) -> Host:
    return replace(
        host,
        notices=[notice[:_NOTE_LENGTH] for notice in record.notices[:_NOTICES]],
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
        draining=order.draining,
        forced=order.forced,
        reason=order.reason[:_NOTE_LENGTH],
        at=order.at,
        requester=order.requester,
    )


def _stuck(fleet: FleetState, services: Iterable[str]) -> dict[str, str]:
    return {
        name: why[:_NOTE_LENGTH] for name, why in diagnosis.stop_reasons(fleet, services).items()
    }


# ── the services ─────────────────────────────────────────────────────────────────────────


def service_names(fleet: FleetState) -> list[str]:
    """The services that have a record or slots, or that a live host offers."""
    claimed = (name for name, claims in fleet.slots.items() if claims)
    offers = fleet.slot_index.offers
    return sorted({*fleet.services, *fleet.unreadable_services, *claimed, *offers})


def services(fleet: FleetState, wanted: Iterable[str], *, at: datetime) -> list[Service]:
    """The reports of the first of the `wanted` services: one at least, and as many as a Box can
    compute without delaying the renewal of its lease.
    """
    page, looks = list[Service](), 0
    for name in wanted:
        if looks > _LOOKS:
            break
        looks += len(fleet.slots_of(name)) + len(fleet.offering(name))
        page.append(_service(name, fleet, at))
    return page


def _service(name: str, fleet: FleetState, at: datetime) -> Service:
    lacks = diagnosis.shortfall(name, fleet, at=at)
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
        stopped=lacks.stopped[:_NOTE_LENGTH],
        before_stop=fleet.services[name].before_stop if name in fleet.services else 0,
        failed=_failed(name, fleet),
    )


def _failed(name: str, fleet: FleetState) -> list[FailedSlot]:
    """The failed slots of live hosts, in the order of their next tries."""
    slots, claims = fleet.service_slots(name), fleet.slots_of(name)
    failed = [
        claim
        for slot in slots.unready - slots.free
        if (claim := claims[slot]).info.state is InstanceState.FAILED
        and diagnosis.is_alive(claim.host, claim.host_id, fleet)
    ]
    last = datetime.max.replace(tzinfo=UTC)
    failed.sort(key=lambda claim: (claim.retry_at or last, claim.info.id))
    return [
        FailedSlot(
            instance_id=claim.info.id,
            host=claim.host,
            reason=claim.failure[:_FAILURE_LENGTH],
            retry_at=claim.retry_at,
        )
        for claim in failed[:_FAILED]
    ]


def _state(claim: SlotRecord, fleet: FleetState) -> InstanceState | None:
    """The state of the instance in the slot; None if its host is dead."""
    alive = diagnosis.is_alive(claim.host, claim.host_id, fleet)
    return claim.info.state if alive else None


# ── the decisions ────────────────────────────────────────────────────────────────────────


def history(records: Iterable[ServiceRecord]) -> list[Entry]:
    """The decisions of a service, whose records come oldest first. Before them come the older
    requests that the newest record keeps.
    """
    ordered = list(records)
    if not ordered:
        return []
    oldest, newest = ordered[0], ordered[-1]
    requests = [_request(item) for item in newest.requests if item.version < oldest.version]
    return [*requests, _entry(None, oldest), *(_entry(*both) for both in pairwise(ordered))]


def _request(request: Request) -> Entry:
    entry = Entry(
        version=request.version,
        before=request.before,
        after=request.after,
        reconfigured=request.reconfigured,
    )
    return _with_decision(entry, request.decision)


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
    elif after.version == 1:  # the first record
        entry = replace(entry, before=0, added=after.slots)
    return entry if after.decision is None else _with_decision(entry, after.decision)


def _with_decision(entry: Entry, decision: Decision) -> Entry:
    return replace(
        entry,
        at=decision.at,
        host=decision.host,
        request_id=decision.request_id,
        replicas=None if decision.step else decision.replicas,
        note=(decision.error or "")[:_NOTE_LENGTH],
        requester=decision.requester,
    )


# ── what a request would do ──────────────────────────────────────────────────────────────


def plan(request: AdmissionRequest, admission: Admission, fleet: FleetState) -> PlanResponse:
    """The effect that a request with this admission would have, and its placement."""
    service, at = request.request.service, request.at
    before = fleet.services.get(service) or ServiceRecord()
    after, response = admission.record or before, admission.response
    services = {**fleet.services, service: after}
    index = fleet.slot_index.with_services(services, service)
    planned = replace(fleet, services=services, slot_index=index)
    moving = set(rollout.outdated(service, planned))
    names = {*fleet.hosts, *fleet.unreadable_hosts, *fleet.service_slots(service).hosts}
    return PlanResponse(
        service=service,
        replicas=request.request.replicas,
        accepted=response.accepted,
        before=before.target,
        target=response.target_replicas,
        error=response.error,
        slots=_slots(service, fleet, after, moving, at),
        hosts=_candidates(service, fleet, after, sorted(names), at),
        stuck=_stuck_reason(service, planned, moving, request) if moving else "",
        code=admission.code or "",
    )


def _stuck_reason(
    service: str, fleet: FleetState, moving: AbstractSet[int], request: AdmissionRequest
) -> str:
    """Why no outdated instance is replaced; empty if one is, or will be."""
    if reasons := diagnosis.stop_reasons(fleet, [service]):
        return reasons[service][:_NOTE_LENGTH]
    slots, orphans = fleet.service_slots(service), fleet.orphans(service)
    homeless = diagnosis.shortfall(service, fleet, at=request.at).homeless
    booting = (slots.unready | (orphans & slots.wanted)) - moving - homeless
    if booting or slots.outside - orphans:
        return ""
    if rollout.next_step(service, fleet, at=request.at, host=request.host) is not None:
        return ""
    return "no host has room for a replacement, and none of the old ones can go first"


_ORDER: Final = tuple(Fate)


def _slots(
    service: str,
    fleet: FleetState,
    after: ServiceRecord,
    moving: AbstractSet[int],
    at: datetime,
) -> list[PlannedSlot]:
    """Every slot and its fate; those that change come first."""
    claims = fleet.slots_of(service)
    free = {slot for slot in after.slots if slot not in claims or fleet.is_orphan(claims[slot])}
    placed = place(service, fleet, after, free, at=at)
    slots = []
    for slot in after.slots:
        if slot in free:
            fate = Fate.COMES if slot in placed else Fate.WAITS
            slots.append(PlannedSlot(slot=slot, fate=fate, host=placed.get(slot, "")))
        else:
            fate = Fate.MOVES if slot in moving else Fate.STAYS
            slots.append(_planned_slot(fleet, service, slot, fate))
    leaving = claims.keys() - set(after.slots)
    slots += [_planned_slot(fleet, service, slot, Fate.GOES) for slot in leaving]
    return sorted(slots, key=lambda item: (_ORDER.index(item.fate), item.slot))


def _planned_slot(fleet: FleetState, service: str, slot: int, fate: Fate) -> PlannedSlot:
    claim = fleet.slots_of(service)[slot]
    if claim.info.state not in ENDED:
        return PlannedSlot(slot=slot, fate=fate, host=claim.host, instance_id=claim.info.id)
    return PlannedSlot(slot=slot, fate=Fate.FAILS if fate is Fate.STAYS else fate, host=claim.host)


def _candidates(
    service: str, fleet: FleetState, record: ServiceRecord, names: Iterable[str], at: datetime
) -> list[Candidate]:
    placement = Placement(service, fleet, record, HostRoom(fleet))
    exclusions = {item.host: item for item in diagnosis.exclusions(record, at)}
    return [
        _candidate(service, fleet, record, placement, name, exclusions.get(name)) for name in names
    ]


def _candidate(
    service: str,
    fleet: FleetState,
    record: ServiceRecord,
    placement: Placement,
    name: str,
    exclusion: Exclusion | None,
) -> Candidate:
    if name in fleet.unreadable_hosts:
        return Candidate(name=name, room=0, why_not=_UNREADABLE)
    if name not in fleet.hosts:
        count = fleet.service_slots(service).hosts[name]
        return Candidate(name=name, room=0, why_not=f"dead, and still holds {count} of it")
    if blocker := _blocker(service, fleet, record, name):
        return Candidate(name=name, room=0, why_not=blocker)
    if exclusion is None:
        return Candidate(name=name, room=placement.left(name))
    slots, until = ", ".join(map(str, exclusion.slots[:20])), format_time(exclusion.until)
    excluded = f"kept off it until {until}, as they failed there: slots {slots}"
    return Candidate(name=name, room=placement.left(name), why_not=excluded)


def _blocker(service: str, fleet: FleetState, record: ServiceRecord, name: str) -> str | None:
    """Why the host could not take an instance."""
    host = fleet.hosts[name]
    if service not in host.services and not (record.on_request and host.images):
        return "it does not offer the service"
    if host.closing:
        return "it is about to leave"
    if not host.ready:
        return "its Box is not ready: `box-bridge hosts` says why"
    if blocker := run_blocker(service, host, record.config):
        return f"unfit: {blocker}"
    if (order := fleet.orders.get(name)) is not None:
        return _order_blocker(order)
    if room(name, host, fleet) <= 0:
        return f"full: {fleet.used.get(name, 0)} of {host.max_instances}"
    port = host_port(record.config, host, service)
    if port and name in fleet.service_slots(service).hosts:
        return f"port {port} is taken by its instance there"
    return None


def _order_blocker(order: HostOrder) -> str:
    since = f" since {format_time(order.at)}" if order.at else ""
    reason = f": {order.reason[:_NOTE_LENGTH]}" if order.reason else ""
    return f"{'being drained' if order.draining else 'cordoned'}{since}{reason}"
