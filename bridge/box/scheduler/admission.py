"""What a scale request means for the fleet as it stands. Pure: the clock is an argument.

The rules are those of the wire contract ("What a scale request means"). A verdict changes
nothing by itself: it holds the record to be written by compare-and-set, and what to answer once
that has succeeded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from datetime import datetime
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from bridge.box.scheduler import on_request
from bridge.box.scheduler.placement import able_hosts, capacity, host_port, rivals
from bridge.box.state.capacity_cache import Capacity, Competition
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.lifecycle import ENDED
from bridge.box.state.records import (
    RECEIPTS,
    Decision,
    HostRecord,
    Receipt,
    Rollout,
    ServiceRecord,
    body_hash,
    config_id,
    is_empty,
    merged,
    remembered,
)
from bridge.errors import NameRefused
from bridge.images import admits, full_reference
from bridge.protocol import (
    InstanceInfo,
    InstanceState,
    ScaleConfig,
    ScaleRequest,
    ScaleResponse,
    format_time,
)
from bridge.reply_codes import Refusal, ReplyCode
from bridge.subjects import check_name

MAX_REQUEST_ID: Final = 128  # letters; receipts are kept, so their size is bounded

_LEAVING: Final = frozenset({InstanceState.DRAINING, InstanceState.STOPPING})


class AdmissionRequest(Struct, frozen=True, kw_only=True):
    """A request and what came with it; `host` is the one that decides, `at` its wall clock.

    From `expires_at` on the request must have no effect; None is never.
    """

    request: ScaleRequest
    host: str
    at: datetime
    expires_at: datetime | None = None
    replaces_config: bool = False
    dry_run: bool = False
    traceparent: str = ""


class Admission(Struct, frozen=True, kw_only=True):
    """The response, and the record to write first; None if nothing is to be written.

    `code` is None if the request is accepted.
    """

    response: ScaleResponse
    code: ReplyCode | None = None
    record: ServiceRecord | None = None


def decide(asked: AdmissionRequest, fleet: FleetState) -> Admission:
    """The verdict on `asked`. Never raises on account of what the request says."""
    request = asked.request
    if asked.expires_at is not None and asked.expires_at <= asked.at:
        return refuse(request, fleet, expired(asked.expires_at, asked.at, asked.host))
    try:
        check_name("service", request.service)
    except NameRefused as exc:
        return refuse(request, fleet, Refusal(ReplyCode.INVALID_REQUEST, str(exc)))
    if len(request.request_id) > MAX_REQUEST_ID:
        why = f"request_id is longer than {MAX_REQUEST_ID} letters"
        return refuse(request, fleet, Refusal(ReplyCode.INVALID_REQUEST, why))
    if request.service in fleet.unreadable_services:
        return refuse(request, fleet, _unreadable(request.service, asked.host))
    record = on_request.basis(request.service, fleet, asked.at)
    if receipt := _receipt(record, request.request_id):
        return _repeat(asked, fleet, receipt, record)
    config = merged(record.config, request.config, replaces=asked.replaces_config)
    wanted = replace(record, config=config)
    hosts = standing(request.service, fleet, wanted)
    if not hosts.able and not _only_lowers(asked, record):
        return refuse(request, fleet, _no_host(request.service, fleet, wanted, hosts.why_not))
    if wanted.on_request and (why := on_request.one_too_many(request.service, fleet, asked.at)):
        return refuse(request, fleet, Refusal(ReplyCode.CAPACITY_EXCEEDED, why))
    return _grant(asked, fleet, record, on_request.fully_named(config), hosts)


def expired(expires_at: datetime, at: datetime, host: str) -> Refusal:
    """The refusal of a request that reaches `host` at `at`, after its `expires_at`."""
    why = (
        f"request: expired at {format_time(expires_at)}: it is {format_time(at)} "
        f"at Box {host}; ask anew, or set the clock"
    )
    return Refusal(ReplyCode.EXPIRED, why)


def refuse(request: ScaleRequest, fleet: FleetState, refusal: Refusal) -> Admission:
    """The admission that changes nothing; its response has the current counts."""
    record = fleet.services.get(request.service)
    target = record.target if record else 0
    response = _response(request, fleet, target, error=str(refusal), accepted=False)
    return Admission(response=response, code=refusal.code)


def living(
    fleet: FleetState, service: str, *, leaving: AbstractSet[int] = frozenset()
) -> list[InstanceInfo]:
    """The instances of `service` that have not ended, oldest first, with their newest health.

    Those in the slots `leaving` are shown as Draining.
    """
    found = []
    for slot, record in fleet.slots_of(service).items():
        info = fleet.latest(record)
        if info.state in ENDED:
            continue
        if slot in leaving and info.state not in _LEAVING:
            info = replace(info, state=InstanceState.DRAINING)
        found.append(info)
    return sorted(found, key=lambda info: (info.created_at, info.id))


def idlest(fleet: FleetState, service: str, slots: Iterable[int], count: int) -> list[int]:
    """The `count` of `slots` whose end costs least: those without a living host or instance, Ready
    with fewest in flight, Creating, Booting, Busy; of equals the youngest. Last comes what cannot
    be read: it may be busy.
    """
    claimed, unreadable = fleet.slots_of(service), fleet.unreadable.get(service, frozenset())

    def cost(slot: int) -> tuple[int, int, float, int]:
        record = claimed.get(slot)
        if record is None or fleet.is_orphan(record):
            return (len(_RANK) + 1 if slot in unreadable else 0, 0, 0.0, -slot)
        info = fleet.latest(record)
        inflight = info.health.inflight_requests
        return (_RANK.get(info.state, 0), inflight, -info.created_at.timestamp(), -slot)

    return sorted(slots, key=cost)[:count]


_RANK: Final = {
    InstanceState.READY: 1,
    InstanceState.CREATING: 2,
    InstanceState.BOOTING: 3,
    InstanceState.BUSY: 4,
}


# ── the steps of a decision ──────────────────────────────────────────────────────────────


def _receipt(record: ServiceRecord, request_id: str) -> Receipt | None:
    if not request_id:
        return None
    return next((item for item in record.receipts if item.request_id == request_id), None)


def _repeat(
    asked: AdmissionRequest, fleet: FleetState, receipt: Receipt, record: ServiceRecord
) -> Admission:
    request = asked.request
    if receipt.body != body_hash(request, replaces_config=asked.replaces_config):
        why = (
            f"request_id {request.request_id!r} was used for another request: "
            "ask with a new request_id"
        )
        return refuse(request, fleet, Refusal(ReplyCode.CONFLICT, why))
    return Admission(
        code=None if receipt.accepted else ReplyCode.CAPPED,
        response=ScaleResponse(
            request_id=request.request_id,
            accepted=receipt.accepted,
            current_replicas=receipt.current,
            target_replicas=receipt.target,
            instances=living(fleet, request.service),
            error=receipt.error,
        ),
    )


def _only_lowers(asked: AdmissionRequest, record: ServiceRecord) -> bool:
    """Whether a service that a request has made is to have fewer instances, or none, and nothing
    else: so much may be asked whatever the hosts admit by now.
    """
    request = asked.request
    plain = is_empty(request.config) and not asked.replaces_config
    return record.on_request and plain and request.replicas < record.target


def _no_host(
    service: str, fleet: FleetState, wanted: ServiceRecord, why_not: Mapping[str, str]
) -> Refusal:
    """The refusal of a service that no live host can run."""
    image = wanted.config.image or ""
    if wanted.on_request:
        why_not = {
            name: why for name, why in why_not.items() if admits(fleet.hosts[name].images, image)
        }
    if why_not:
        return Refusal(ReplyCode.UNSUPPORTED_CONFIG, f"config: {why_not[max(why_not)]}")
    return _unknown(service, fleet, wanted)


def _unknown(service: str, fleet: FleetState, wanted: ServiceRecord) -> Refusal:
    known = sorted({name for host in fleet.hosts.values() for name in host.services})
    listed = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
    problem = f"unknown service {service!r}: no live Box lists it"
    if wanted.on_request and wanted.config.image:
        try:
            image = full_reference(wanted.config.image)
        except ValueError as exc:
            return Refusal(ReplyCode.UNSUPPORTED_CONFIG, f"config: {exc}")
        problem += f", and none admits image {image} ([box] allow_images)"
    return Refusal(ReplyCode.UNKNOWN_SERVICE, f"{problem}; known: {listed or 'none'}")


def _unreadable(service: str, host: str) -> Refusal:
    why = (
        f"the record of {service!r} cannot be read by Box {host}: a newer Box wrote it, or it is "
        "damaged; bring this Box up to date, or restore the record"
    )
    return Refusal(ReplyCode.UNREADABLE_RECORD, why)


def standing(service: str, fleet: FleetState, wanted: ServiceRecord) -> Capacity:
    """The hosts that could run `service` as `wanted` has it: found out once, until they change."""
    known = fleet.capacity_cache.get(service, wanted) if fleet.capacity_cache is not None else None
    if known is not None:
        return known
    able, why_not = able_hosts(service, fleet, wanted)
    found = Capacity(
        config=wanted.config,
        on_request=wanted.on_request,
        able=able,
        why_not=why_not,
        total=sum(capacity(name, host, fleet) for name, host in able.items()),
        places=_places(service, fleet, able) if _fixes_port(able, wanted.config, service) else None,
    )
    if fleet.capacity_cache is not None:
        fleet.capacity_cache.keep(service, found)
    return found


def _capacity(service: str, fleet: FleetState, hosts: Capacity) -> tuple[int, int]:
    """How many instances the hosts could hold in all, and how many other services may take.

    A fixed host port leaves as much room as there are places. What is promised to a service whose
    record cannot be read is at least what it holds.
    """
    promised = _promised(service, fleet, hosts)
    unreadable = promised.rivals & fleet.unreadable_services
    used = promised.count + sum(len(fleet.slots_of(name)) for name in unreadable)
    total = hosts.total if hosts.places is None else min(hosts.total, hosts.places + used)
    return total, used


def _promised(service: str, fleet: FleetState, hosts: Capacity) -> Competition:
    """What the rivals were granted, together: summed up once, until a record changes."""
    known = fleet.capacity_cache.promised(service) if fleet.capacity_cache is not None else None
    if known is not None:
        return known
    others = rivals(fleet, hosts.able) - {service}
    count = sum(record.target for name, record in fleet.services.items() if name in others)
    found = Competition(rivals=others, count=count)
    if fleet.capacity_cache is not None:
        fleet.capacity_cache.keep_promised(service, found)
    return found


def _fixes_port(hosts: Mapping[str, HostRecord], config: ScaleConfig, service: str) -> bool:
    return all(host_port(config, host, service) for host in hosts.values())


def _places(service: str, fleet: FleetState, able: Iterable[str]) -> int:
    """How many instances the hosts can have with one each; a cordoned one has what it has, one that
    is being drained none.
    """
    there, orders = fleet.service_slots(service).hosts, fleet.orders
    return sum(name not in orders or (name in there and not orders[name].draining) for name in able)


def _one_a_host(hosts: int, target: int) -> Refusal:
    why = (
        f"config: port_map fixes a host port, which one instance of each host can have: {hosts} "
        f"can, but {target} instances are granted; ask for at most {hosts} with it"
    )
    return Refusal(ReplyCode.UNSUPPORTED_CONFIG, why)


def _grant(
    asked: AdmissionRequest,
    fleet: FleetState,
    record: ServiceRecord,
    config: ScaleConfig,
    hosts: Capacity,
) -> Admission:
    request, able = asked.request, hosts.able
    total, used = _capacity(request.service, fleet, hosts)
    target = min(request.replicas, max(total - used, 0, record.target))
    places = hosts.places
    fixed_before = places is not None and _fixes_port(able, record.config, request.service)
    if places is not None and target > places and not fixed_before:
        return refuse(request, fleet, _one_a_host(places, target))
    accepted = target == request.replicas
    code = error = None
    if not accepted:
        code = ReplyCode.CAPPED
        error = f"Capped to {target} instances (max {total} total, {used} used by other services)"
    slots, leaving = _resized(fleet, request.service, record, target)
    rollout = _rollout(record, config, request.config)
    response = _response(request, fleet, target, accepted=accepted, error=error, leaving=leaving)
    changed = (slots, target, config, rollout) != (
        record.slots,
        record.target,
        record.config,
        record.rollout,
    )
    if asked.dry_run or not (changed or request.request_id):
        return Admission(response=response, code=code)
    written = replace(
        record,
        version=record.version + 1,
        target=target,
        slots=slots,
        config=config,
        rollout=rollout,
        moves=[slot for slot in record.moves if slot in slots],
        receipts=_receipts(record, asked, response),
        decision=Decision(
            at=asked.at,
            host=asked.host,
            replicas=request.replicas,
            request_id=request.request_id,
            error=error,
            traceparent=asked.traceparent,
        ),
    )
    return Admission(response=response, code=code, record=remembered(record, written))


def _resized(
    fleet: FleetState, service: str, record: ServiceRecord, target: int
) -> tuple[list[int], set[int]]:
    """The slot set for `target`, and the slots taken out of it. The same target keeps the set,
    and with it the extra slot of a rollout under way.
    """
    slots = set(record.slots)
    if target == record.target:
        return record.slots, set()
    if target > len(slots):
        slots |= set(fleet.free_slots(service, target - len(slots), beside=slots))
    leaving = set(idlest(fleet, service, slots, len(slots) - target))
    return sorted(slots - leaving), leaving


def _rollout(record: ServiceRecord, config: ScaleConfig, asked: ScaleConfig) -> Rollout | None:
    """A new config starts afresh, and so does asking again for one whose rollout stopped."""
    rollout = record.rollout
    if rollout is None:
        return None
    if rollout.config != config_id(config) or (rollout.stopped and not is_empty(asked)):
        return None
    return rollout


def _receipts(
    record: ServiceRecord, asked: AdmissionRequest, response: ScaleResponse
) -> list[Receipt]:
    request = asked.request
    if not request.request_id:
        return record.receipts
    receipt = Receipt(
        request_id=request.request_id,
        body=body_hash(request, replaces_config=asked.replaces_config),
        accepted=response.accepted,
        current=response.current_replicas,
        target=response.target_replicas,
        error=response.error,
    )
    return [*record.receipts, receipt][-RECEIPTS:]


def _response(
    request: ScaleRequest,
    fleet: FleetState,
    target: int,
    *,
    accepted: bool,
    error: str | None,
    leaving: AbstractSet[int] = frozenset(),
) -> ScaleResponse:
    instances = living(fleet, request.service, leaving=leaving)
    return ScaleResponse(
        request_id=request.request_id,
        accepted=accepted,
        current_replicas=len(instances),
        target_replicas=target,
        instances=instances,
        error=error,
    )
