"""What a Box answers: `box.scale` and `box.instances`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from bridge.box.fleet.decisions import Decisions
from bridge.box.fleet.view import FleetView
from bridge.box.scheduler import diagnosis, rollout
from bridge.box.scheduler.admission import AdmissionRequest, living, refuse
from bridge.box.state.records import ServiceRecord
from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.service.responder import Endpoint, Reply
from bridge.errors import ProtocolError
from bridge.protocol import (
    InstanceInfo,
    InstancesRequest,
    InstancesResponse,
    ScaleRequest,
    ScaleResponse,
    decode,
    encode,
    parse_time,
)
from bridge.subjects import (
    CONFIG_MODE,
    CONFIG_REPLACE,
    DRY_RUN,
    EXPIRES_AT,
    INSTANCES_TOTAL,
    RECORD_VERSION,
    TRACEPARENT,
)

_HEADER_ROOM: Final = 1024  # bytes of a reply that are not its payload
_PAGE: Final = 5000  # instances in one reply, whatever was asked for
_EXAMPLE: Final = '{"service":"web","replicas":3}'
_NONE: Final[Mapping[str, str]] = {}
_VERSION: Final = re.compile(r"[0-9]{1,18}")
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class ScaleApi:
    """Answers requests from the fleet's state. `why_not` says why this Box must not, or ""."""

    def __init__(
        self,
        connection: Connection,
        fleet: FleetView,
        ledger: Decisions,
        host: str,
        clock: Callable[[], datetime],
        why_not: Callable[[], str],
    ) -> None:
        self._connection = connection
        self._fleet = fleet
        self._ledger = ledger
        self._host = host
        self._clock = clock
        self._why_not = why_not

    def all(self) -> list[Endpoint]:
        """The endpoints, for a Responder."""
        subjects = self._connection.subjects
        return [
            Endpoint(
                name="scale",
                subject=subjects.scale,
                queue=subjects.queue,
                handle=self._scale,
                refuse=self._refuse_scale,
                at_once=self._scale_at_once,
            ),
            Endpoint(
                name="instances",
                subject=subjects.instances,
                queue=subjects.queue,
                handle=self._instances,
                refuse=_refuse_instances,
            ),
        ]

    # ── box.scale ────────────────────────────────────────────────────────────────────────

    def _scale_at_once(self, message: Message) -> Reply | None:
        """The reply to what changes nothing; None for what must be decided in turn."""
        taken = self._take(message)
        if isinstance(taken, Reply):
            return taken
        response = self._ledger.answer(taken)
        return None if response is None else self._decided(taken, response)

    async def _scale(self, message: Message) -> Reply | None:
        taken = self._take(message)
        if isinstance(taken, Reply):
            return taken
        response = await self._ledger.decide(taken)
        return None if response is None else self._decided(taken, response)

    def _take(self, message: Message) -> AdmissionRequest | Reply:
        """The request, or its refusal: unreadable, or this Box is not the one to ask."""
        try:
            request = decode(ScaleRequest, message.data)
        except ProtocolError as exc:
            error = f"{exc}. Expected JSON like {_EXAMPLE}"
            readable = _salvaged(message.data)
            return self._scale_reply(refuse(readable, self._fleet.state, error).response)
        try:
            asked = self._asked(request, message)
        except ProtocolError as exc:
            return self._scale_reply(refuse(request, self._fleet.state, str(exc)).response)
        if why_not := self._why_not():
            error = f"not ready: {why_not}; ask again"
            return self._scale_reply(refuse(request, self._fleet.state, error).response)
        return asked

    def _asked(self, request: ScaleRequest, message: Message) -> AdmissionRequest:
        """The request with what its headers say; raises ProtocolError for what they must not."""
        headers, expires_at = message.headers, expiry(message)
        trace = headers.get(TRACEPARENT, "")
        return AdmissionRequest(
            request=request,
            host=self._host,
            at=self._clock(),
            expires_at=expires_at,
            replaces_config=_choice(headers.get(CONFIG_MODE), CONFIG_MODE, CONFIG_REPLACE),
            dry_run=_choice(headers.get(DRY_RUN), DRY_RUN, "true"),
            traceparent=trace if _TRACEPARENT.fullmatch(trace) else "",
        )

    def _refuse_scale(self, error: str) -> Reply:
        """A refusal of what could not be read: there is no service whose counts could stand."""
        response = ScaleResponse(
            request_id="",
            accepted=False,
            current_replicas=0,
            target_replicas=0,
            instances=[],
            error=error,
        )
        return self._scale_reply(response)

    def _decided(self, asked: AdmissionRequest, response: ScaleResponse) -> Reply:
        """The reply, which says what version of the service's record it rests on."""
        record = self._fleet.state.services.get(asked.request.service)
        return self._scale_reply(response, {RECORD_VERSION: str(record.version)} if record else {})

    def _scale_reply(self, response: ScaleResponse, head: Mapping[str, str] = _NONE) -> Reply:
        data, headers = self._fitting(response)
        outcome = "accepted" if response.accepted else "refused"
        if (response.error or "").startswith("Capped"):
            outcome = "capped"
        error = response.error if outcome == "refused" else ""
        return Reply(data=data, headers={**headers, **head}, outcome=outcome, error=error or "")

    def _fitting(self, response: ScaleResponse | InstancesResponse) -> tuple[bytes, dict[str, str]]:
        """The payload, with as many instances as the server lets through."""
        limit = self._connection.max_payload - _HEADER_ROOM
        data = encode(response)
        if len(data) <= limit:
            return data, {}
        total = len(response.instances)
        fits = total
        while len(data) > limit and fits:
            fits = min(fits - 1, fits * limit // len(data))
            data = encode(_cut(response, fits))
        return data, {INSTANCES_TOTAL: str(total)}

    # ── box.instances ────────────────────────────────────────────────────────────────────

    async def _instances(self, message: Message) -> Reply:
        try:
            asked = decode(InstancesRequest, message.data or b"{}")
        except ProtocolError as exc:
            return _refuse_instances(str(exc))
        state = self._fleet.state
        try:
            behind = _is_behind(state.services.get(asked.service), message)
        except ProtocolError as exc:
            return _refuse_instances(str(exc))
        if why_not := self._why_not() or behind:
            return _refuse_instances(f"not ready: {why_not}; ask again")
        services = [asked.service] if asked.service else sorted({*state.services, *state.slots})
        found = [info for service in services for info in living(state, service)]
        found.sort(key=lambda info: (info.created_at, info.id))
        page = found[asked.offset : asked.offset + min(asked.limit, _PAGE)]
        response = InstancesResponse(
            total=len(found),
            instances=page,
            hosts=self._hosts(page),
            rolling=[service for service in services if rollout.under_way(service, state)],
            notices=self._notices(services),
            stopped=diagnosis.stopped(state, services),
        )
        data, headers = self._fitting(response)
        return Reply(data=data, headers=headers)

    def _hosts(self, page: list[InstanceInfo]) -> dict[str, str]:
        wanted = {info.id for info in page}
        return {
            record.info.id: record.host
            for service in {info.service for info in page}
            for record in self._fleet.state.slots_of(service).values()
            if record.info.id in wanted
        }

    def _notices(self, services: list[str]) -> dict[str, str]:
        """What needs a person's attention, by service, and by ``host <name>``."""
        state = self._fleet.state
        of_hosts = {
            f"host {name}": "; ".join(host.notices)
            for name, host in state.hosts.items()
            if host.notices
        }
        return of_hosts | diagnosis.tell(state, services, at=self._clock())


def expiry(message: Message) -> datetime | None:
    """From when on the request must have no effect; raises ProtocolError for malformed headers."""
    if message.malformed:
        raise ProtocolError("headers", "", "malformed: each must be a line `Name: value`")
    expires = message.headers.get(EXPIRES_AT)
    if not expires:
        return None
    try:
        return parse_time(expires)
    except ProtocolError as exc:
        raise ProtocolError("header", EXPIRES_AT, exc.problem) from exc


def _is_behind(record: ServiceRecord | None, message: Message) -> str:
    """Why `record` is older than the caller knows it to be, or "". Raises ProtocolError."""
    wanted = message.headers.get(RECORD_VERSION)
    if wanted is None:
        return ""
    if _VERSION.fullmatch(wanted) is None:
        problem = f"{wanted[:40]!r} must be what a reply to box.scale said, or left out"
        raise ProtocolError("header", RECORD_VERSION, problem)
    there = record.version if record else 0
    return f"it has seen version {there} of {int(wanted)}" if there < int(wanted) else ""


class _Hint(Struct):
    """What may be readable of a request that is otherwise wrong."""

    service: Any = ""
    request_id: Any = ""


def _salvaged(data: bytes) -> ScaleRequest:
    """The service and request id of a wrong request, so that its refusal can name the counts as
    they stand; what cannot be read is left out.
    """
    try:
        hint = decode(_Hint, data)
    except ProtocolError:
        hint = _Hint()
    return ScaleRequest(
        service=hint.service if isinstance(hint.service, str) else "",
        replicas=0,
        request_id=hint.request_id if isinstance(hint.request_id, str) else "",
    )


def _refuse_instances(error: str) -> Reply:
    response = InstancesResponse(total=0, instances=[], hosts={}, error=error)
    return Reply(data=encode(response), outcome="refused", error=error)


def _choice(value: str | None, header: str, word: str) -> bool:
    """Whether an optional header says `word`; raises ProtocolError for anything else."""
    if value is not None and value != word:
        raise ProtocolError("header", header, f"{value[:40]!r} must be {word!r}, or left out")
    return value is not None


def _cut(
    response: ScaleResponse | InstancesResponse, count: int
) -> ScaleResponse | InstancesResponse:
    kept = response.instances[:count]
    if isinstance(response, ScaleResponse):
        return replace(response, instances=kept)
    ids = {info.id for info in kept}
    hosts = {key: host for key, host in response.hosts.items() if key in ids}
    return replace(response, instances=kept, hosts=hosts)
