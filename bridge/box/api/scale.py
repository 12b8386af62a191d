"""The endpoints `box.scale` and `box.instances`."""

from __future__ import annotations

import functools
import logging
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from bridge.box.api import instance_pages
from bridge.box.api.context import ApiContext
from bridge.box.api.replies import refusal_of, refused_instances, scale_reply, with_instances
from bridge.box.api.request_headers import (
    digest,
    expected_revision,
    expiry,
    flag,
    known_version,
    traceparent,
)
from bridge.box.scheduler import diagnosis, rollout
from bridge.box.scheduler.admission import Admission, AdmissionRequest, refuse
from bridge.bus.core.message import Message
from bridge.bus.service.endpoint import Deferred, Endpoint, Reply
from bridge.errors import BusError, NoReply, ProtocolError
from bridge.protocol import InstancesRequest, InstancesResponse, ScaleRequest, decode
from bridge.reply_codes import Refusal, ReplyCode
from bridge.subjects import (
    ALL_OR_NOTHING,
    CONFIG_MODE,
    CONFIG_REPLACE,
    DRY_RUN,
    HIGHEST_RANK,
    RECORD_VERSION,
    REVISION,
    VICTIMS,
)

_log = logging.getLogger(__name__)

_EXAMPLE: Final = '{"service":"web","replicas":3}'
_UNREAD: Final = ScaleRequest(service="", replicas=0)


class ScaleApi:
    """Answers requests from the fleet's state."""

    def __init__(self, api: ApiContext) -> None:
        self._api = api

    def endpoints(self) -> list[Endpoint]:
        """The endpoints, for a Responder."""
        subjects = self._api.connection.subjects
        return [
            Endpoint(
                name="scale",
                subject=subjects.scale,
                queue=subjects.queue,
                handle=self._scale,
                refuse=functools.partial(self._refused, _UNREAD),
                at_once=self._scale_at_once,
            ),
            Endpoint(
                name="instances",
                subject=subjects.instances,
                queue=subjects.queue,
                handle=self._instances,
                refuse=refused_instances,
            ),
        ]

    # ── box.scale ────────────────────────────────────────────────────────────────────────

    def _scale_at_once(self, message: Message) -> Reply | Deferred:
        """The reply if the request changes nothing; else the decision, which takes its turn."""
        request = self._read(message)
        if isinstance(request, Reply):
            return request
        try:
            self._api.check_ready()
            admission = self._api.decisions.answer(request)
        except Refusal as exc:
            return self._refused(request.request, exc)
        if admission is None:
            return functools.partial(self._decide, request)
        return self._reply(request, admission)

    async def _scale(self, message: Message) -> Reply | None:
        request = self._read(message)
        return request if isinstance(request, Reply) else await self._decide(request)

    async def _decide(self, request: AdmissionRequest) -> Reply | None:
        try:
            self._api.check_ready()
            admission = await self._api.decisions.decide(request)
        except NoReply:
            return None
        except (BusError, Refusal) as exc:
            refusal = refusal_of(exc, store="the fleet's store refused the decision")
            return self._refused(request.request, refusal)
        if request.requester and admission.record is not None:
            scale, target = request.request, admission.response.target_replicas
            _log.info(
                "%s: %s requested %d instances; the target is %d",
                scale.service,
                request.requester,
                scale.replicas,
                target,
            )
        return self._reply(request, admission)

    def _read(self, message: Message) -> AdmissionRequest | Reply:
        """The request with what its headers ask for, or the refusal of an invalid one."""
        try:
            request = decode(ScaleRequest, message.data)
        except ProtocolError as exc:
            why = f"{exc}. Expected JSON like {_EXAMPLE}"
            refusal = Refusal(ReplyCode.INVALID_REQUEST, why)
            return self._refused(_readable_part(message.data), refusal)
        try:
            return AdmissionRequest(
                request=request,
                host=self._api.host,
                at=self._api.clock(),
                expires_at=expiry(message),
                replaces_config=flag(message, CONFIG_MODE, CONFIG_REPLACE),
                dry_run=flag(message, DRY_RUN, "true"),
                expected_revision=expected_revision(message),
                all_or_nothing=flag(message, ALL_OR_NOTHING, "true"),
                highest_rank_first=flag(message, VICTIMS, HIGHEST_RANK),
                digest=digest(message),
                traceparent=traceparent(message),
                requester=self._api.requester(message),
            )
        except ProtocolError as exc:
            return self._refused(request, refusal_of(exc))

    def _reply(self, request: AdmissionRequest, admission: Admission) -> Reply:
        """The reply, which names the version of the service's record that it rests on."""
        record = self._api.fleet.state.services.get(request.request.service)
        headers = {RECORD_VERSION: str(record.version)} if record else {}
        return scale_reply(admission, self._api.connection.max_payload, headers)

    def _refused(self, request: ScaleRequest, refusal: Refusal) -> Reply:
        """The refusal of a request, with the current counts of its service."""
        admission = refuse(request, self._api.fleet.state, refusal)
        return scale_reply(admission, self._api.connection.max_payload)

    # ── box.instances ────────────────────────────────────────────────────────────────────

    async def _instances(self, message: Message) -> Reply:
        try:
            request = decode(InstancesRequest, message.data or b"{}")
            version = known_version(message)
            self._api.check_ready()
            self._check_current(request.service, version)
            response = instance_pages.page(
                self._api.fleet.state, request, self._api.connection.max_payload
            )
        except (ProtocolError, Refusal) as exc:
            return refused_instances(refusal_of(exc))
        if not request.after:
            response = self._with_problems(response, request.service)
        data, headers = with_instances(response, self._api.connection.max_payload)
        record = self._api.fleet.state.services.get(request.service)
        if record is not None:
            headers[REVISION] = str(record.revision)
        return Reply(data=data, headers=headers)

    def _with_problems(self, page: InstancesResponse, service: str) -> InstancesResponse:
        state = self._api.fleet.state
        services = [service] if service else sorted({*state.services, *state.slots})
        return replace(
            page,
            rolling=[name for name in services if rollout.is_under_way(name, state)],
            notices=self._notices(services),
            stopped=diagnosis.stop_reasons(state, services),
        )

    def _check_current(self, service: str, version: int) -> None:
        """Raise Refusal if this Box has not seen `version` of the service's record yet."""
        record = self._api.fleet.state.services.get(service)
        current = record.version if record else 0
        if current < version:
            why = f"it has seen version {current} of {version}"
            raise Refusal(ReplyCode.NOT_READY, why)

    def _notices(self, services: list[str]) -> dict[str, str]:
        """Problems that need a person's attention, by service and by ``host <name>``."""
        state = self._api.fleet.state
        of_hosts = {
            f"host {name}": "; ".join(host.notices)
            for name, host in state.hosts.items()
            if host.notices
        }
        return of_hosts | diagnosis.notices(state, services, at=self._api.clock())


class _Hint(Struct):
    """The fields that may be readable in a request that is otherwise invalid."""

    service: Any = ""
    request_id: Any = ""


def _readable_part(data: bytes) -> ScaleRequest:
    """The service and the request id of an invalid request, as far as they are readable: with them
    the refusal has the current counts of the service.
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
