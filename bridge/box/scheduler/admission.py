"""What a scale request means for the fleet in its current state. Pure: the clock is an argument.

The rules are those of the wire contract ("What a scale request means"). An admission changes
nothing by itself: it has the record to write by compare-and-set, and the response to send after
that write has succeeded.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from datetime import datetime
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from bridge.box.scheduler import on_request
from bridge.box.scheduler.host_capacity import capacity_for, fixes_port, total_and_used
from bridge.box.scheduler.instance_order import idlest, oldest_first
from bridge.box.state.capacity_cache import Capacity
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.ranks import ranked, rerank
from bridge.box.state.records import (
    MAX_SLOTS,
    RECEIPTS,
    Decision,
    Receipt,
    Rollout,
    ServiceRecord,
    body_hash,
    config_id,
    is_empty,
    merged,
    with_request,
)
from bridge.box.state.runtime_limits import request_blocker
from bridge.errors import NameRefused
from bridge.images import admits, full_reference
from bridge.protocol import ScaleConfig, ScaleRequest, ScaleResponse, format_time
from bridge.reply_codes import Refusal, ReplyCode
from bridge.subjects import check_name

MAX_REQUEST_ID: Final = 128  # code points; receipts are kept, so their size is bounded


class AdmissionRequest(Struct, frozen=True, kw_only=True):
    """A scale request with its headers. `host` decides it, at the time `at` of its wall clock.

    From `expires_at` on the request must have no effect; None means that it does not expire. It has
    none either if the service's revision is not the `expected_revision`, unless that is None.
    `all_or_nothing` refuses what cannot be granted in full. With `highest_rank_first` a lower
    target ends the instances with the highest ranks, not the idlest. A repeat must have the same
    `digest`.
    """

    request: ScaleRequest
    host: str
    at: datetime
    expires_at: datetime | None = None
    replaces_config: bool = False
    dry_run: bool = False
    expected_revision: int | None = None
    all_or_nothing: bool = False
    highest_rank_first: bool = False
    digest: str = ""
    traceparent: str = ""
    requester: str = ""


class Admission(Struct, frozen=True, kw_only=True):
    """The response, and the record to write first; None if nothing is to be written.

    `code` is None if the request is accepted. `revision` is the service's after the request.
    """

    response: ScaleResponse
    revision: int
    code: ReplyCode | None = None
    record: ServiceRecord | None = None


def decide(request: AdmissionRequest, fleet: FleetState) -> Admission:
    """The admission of a request. The content of the request never makes it raise."""
    scale = request.request
    if refusal := _refusal_unread(request, fleet):
        return refuse(scale, fleet, refusal)
    record = on_request.basis(scale.service, fleet, request.at)
    if receipt := _receipt(record, scale.request_id):
        return _repeat(request, fleet, receipt)
    if request.expected_revision not in (None, record.revision):
        return refuse(scale, fleet, _stale(scale.service, request, record))
    config = merged(record.config, scale.config, replaces=request.replaces_config)
    wanted = replace(record, config=config)
    hosts = capacity_for(scale.service, fleet, wanted)
    if not hosts.able and not _only_lowers(request, record):
        return refuse(scale, fleet, _no_host(scale.service, fleet, wanted, hosts.blockers))
    if wanted.on_request and (why := on_request.limit_blocker(scale.service, fleet, request.at)):
        return refuse(scale, fleet, Refusal(ReplyCode.CAPACITY_EXCEEDED, why))
    return _grant(request, fleet, record, on_request.fully_named(config), hosts)


def refuse(request: ScaleRequest, fleet: FleetState, refusal: Refusal) -> Admission:
    """The admission that changes nothing; its response has the current counts."""
    record = fleet.services.get(request.service)
    target = record.target if record else 0
    response = _response(request, fleet, target, error=str(refusal), accepted=False)
    revision = record.revision if record else 0
    return Admission(response=response, revision=revision, code=refusal.code)


def expired(expires_at: datetime, at: datetime, host: str) -> Refusal:
    """The refusal of a request that reaches `host` at `at`, after its `expires_at`."""
    why = (
        f"request: expired at {format_time(expires_at)}: it is {format_time(at)} "
        f"at Box {host}; send it again, or set the clock"
    )
    return Refusal(ReplyCode.EXPIRED, why)


# ── the reasons to refuse ────────────────────────────────────────────────────────────────


def _refusal_unread(request: AdmissionRequest, fleet: FleetState) -> Refusal | None:
    """The refusal that needs no look at the service's record, if there is one."""
    scale = request.request
    if request.expires_at is not None and request.expires_at <= request.at:
        return expired(request.expires_at, request.at, request.host)
    try:
        check_name("service", scale.service)
    except NameRefused as exc:
        return Refusal(ReplyCode.INVALID_REQUEST, str(exc))
    if len(scale.request_id) > MAX_REQUEST_ID:
        why = f"request_id is longer than {MAX_REQUEST_ID} letters"
        return Refusal(ReplyCode.INVALID_REQUEST, why)
    if blocker := request_blocker(scale.config):
        return Refusal(ReplyCode.UNSUPPORTED_CONFIG, f"config: {blocker}")
    if scale.service in fleet.unreadable_services:
        why = (
            f"the record of {scale.service!r} cannot be read by Box {request.host}: a newer Box "
            "wrote it, or it is damaged; bring this Box up to date, or restore the record"
        )
        return Refusal(ReplyCode.UNREADABLE_RECORD, why)
    return None


def _only_lowers(request: AdmissionRequest, record: ServiceRecord) -> bool:
    """Whether the request only lowers the target, or leaves it. That is allowed for each service
    that has a record, whatever the hosts offer by now.
    """
    scale = request.request
    plain = is_empty(scale.config) and not request.replaces_config
    lowers = scale.replicas < record.target or (scale.replicas == record.target == 0)
    return bool(record.version) and plain and lowers


def _no_host(
    service: str, fleet: FleetState, wanted: ServiceRecord, blockers: Mapping[str, str]
) -> Refusal:
    """The refusal of a service that no live host can run."""
    image = wanted.config.image or ""
    if wanted.on_request:
        blockers = {
            name: why for name, why in blockers.items() if admits(fleet.hosts[name].images, image)
        }
    if not blockers and wanted.version and not wanted.on_request:
        why = (
            f"no live Box offers {service!r} any more; its target is {wanted.target}: add it to "
            "the configuration of a host, or ask for fewer"
        )
        return Refusal(ReplyCode.CAPACITY_EXCEEDED, why)
    if blockers:
        return Refusal(ReplyCode.UNSUPPORTED_CONFIG, f"config: {blockers[max(blockers)]}")
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


def _stale(service: str, request: AdmissionRequest, record: ServiceRecord) -> Refusal:
    why = (
        f"{service} has revision {record.revision}, and the request expects "
        f"{request.expected_revision}: read its state again"
    )
    return Refusal(ReplyCode.STALE_REVISION, why)


def _too_few_places(places: int, target: int) -> Refusal:
    """The refusal of a fixed host port for more instances than there are hosts."""
    why = (
        f"config: port_map fixes a host port, which one instance of each host can have: {places} "
        f"can, but {target} instances are granted; ask for at most {places} with it"
    )
    return Refusal(ReplyCode.UNSUPPORTED_CONFIG, why)


# ── a repeated request ───────────────────────────────────────────────────────────────────


def _receipt(record: ServiceRecord, request_id: str) -> Receipt | None:
    if not request_id:
        return None
    return next((item for item in record.receipts if item.request_id == request_id), None)


def _repeat(request: AdmissionRequest, fleet: FleetState, receipt: Receipt) -> Admission:
    """The admission of a request that was decided before: the first answer's values."""
    scale = request.request
    if receipt.body != _body_hash(request):
        why = (
            f"request_id {scale.request_id!r} was used for another request: "
            "ask with a new request_id"
        )
        return refuse(scale, fleet, Refusal(ReplyCode.CONFLICT, why))
    response = ScaleResponse(
        request_id=scale.request_id,
        accepted=receipt.accepted,
        current_replicas=receipt.current,
        target_replicas=receipt.target,
        instances=oldest_first(fleet, scale.service),
        error=receipt.error,
    )
    code = None if receipt.accepted else ReplyCode.CAPPED
    revision = receipt.revision
    if revision is None:  # an older Box kept it
        revision = fleet.services[scale.service].revision
    return Admission(response=response, revision=revision, code=code)


def _body_hash(request: AdmissionRequest) -> str:
    return body_hash(
        request.request, replaces_config=request.replaces_config, digest=request.digest
    )


# ── a granted request ────────────────────────────────────────────────────────────────────


def _grant(
    request: AdmissionRequest,
    fleet: FleetState,
    record: ServiceRecord,
    config: ScaleConfig,
    hosts: Capacity,
) -> Admission:
    scale, places = request.request, hosts.places
    total, used = total_and_used(scale.service, fleet, hosts)
    target = min(scale.replicas, max(min(total - used, MAX_SLOTS), 0, record.target))
    if places is not None and target > places:
        fixed_before = fixes_port(hosts.able, record.config, scale.service)
        if not fixed_before:
            return refuse(scale, fleet, _too_few_places(places, target))
    accepted = target == scale.replicas
    code = error = None
    if not accepted:
        code = ReplyCode.CAPPED
        error = f"Capped to {target} instances (max {total} total, {used} used by other services)"
        if target == MAX_SLOTS:
            error = f"Capped to {target} instances, the most that one service can have"
        if request.all_or_nothing:
            why = error.replace("Capped to", "There is room for", 1)
            return refuse(scale, fleet, Refusal(ReplyCode.CAPACITY_EXCEEDED, why))
    slots, leaving = _resized(request, fleet, record, target)
    response = _response(scale, fleet, target, accepted=accepted, error=error, leaving=leaving)
    rollout = _rollout(record, config, scale.config)
    before = record.slots, record.target, record.config, record.rollout
    if request.dry_run or ((slots, target, config, rollout) == before and not scale.request_id):
        return Admission(response=response, revision=record.revision, code=code)
    after = replace(
        record,
        target=target,
        before_stop=0 if target else record.target or record.before_stop,
        slots=slots,
        ranks=rerank(record, slots, target),
        config=config,
        rollout=rollout,
    )
    written = _with_decision(request, record, after, response)
    return Admission(response=response, revision=written.revision, code=code, record=written)


def _with_decision(
    request: AdmissionRequest,
    before: ServiceRecord,
    after: ServiceRecord,
    response: ScaleResponse,
) -> ServiceRecord:
    """The record `after`, with the decision and its receipt."""
    scale = request.request
    decision = Decision(
        at=request.at,
        host=request.host,
        replicas=scale.replicas,
        request_id=scale.request_id,
        error=response.error,
        traceparent=request.traceparent,
        requester=request.requester,
    )
    changed = (after.target, after.config) != (before.target, before.config)
    revision = before.revision + changed
    after = replace(
        after,
        version=before.version + 1,
        revision=revision,
        moves=[slot for slot in before.moves if slot in after.slots],
        restarts=[slot for slot in before.restarts if slot in after.slots],
        receipts=_receipts(request, before, response, revision),
        decision=decision,
    )
    return with_request(before, after)


def _resized(
    request: AdmissionRequest, fleet: FleetState, record: ServiceRecord, target: int
) -> tuple[list[int], set[int]]:
    """The slot set for `target`, and the slots removed from it. The same target keeps the set, and
    with it the extra slot of a rollout that is under way.
    """
    service, slots = request.request.service, set(record.slots)
    if target == record.target:
        return record.slots, set()
    if target > len(slots):
        slots |= set(fleet.free_slots(service, target - len(slots), beside=slots))
    if request.highest_rank_first:
        staying = ranked(record)[:target]
        leaving = slots.difference(staying) if len(staying) == target else set()
    else:
        leaving = set(idlest(fleet, service, slots, len(slots) - target))
    return sorted(slots - leaving), leaving


def _rollout(record: ServiceRecord, config: ScaleConfig, overrides: ScaleConfig) -> Rollout | None:
    """The rollout after a request with these overrides. A new config starts a new one, and so does
    a repeated request for a config whose rollout has stopped.
    """
    rollout = record.rollout
    if rollout is None:
        return None
    if rollout.config != config_id(config) or (rollout.stopped and not is_empty(overrides)):
        return None
    return rollout


def _receipts(
    request: AdmissionRequest, record: ServiceRecord, response: ScaleResponse, revision: int
) -> list[Receipt]:
    scale = request.request
    if not scale.request_id:
        return record.receipts
    receipt = Receipt(
        request_id=scale.request_id,
        body=_body_hash(request),
        accepted=response.accepted,
        current=response.current_replicas,
        target=response.target_replicas,
        error=response.error,
        revision=revision,
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
    instances = oldest_first(fleet, request.service, leaving=leaving)
    return ScaleResponse(
        request_id=request.request_id,
        accepted=accepted,
        current_replicas=len(instances),
        target_replicas=target,
        instances=instances,
        error=error,
    )
