"""GET and POST of ``/v1/scale/{service}`` on the fleet."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from typing import Final

from bridge.bus.core.connection import Connection
from bridge.errors import BusError, NameRefused
from bridge.gateway.errors import ScaleError
from bridge.gateway.http.observation import Observation, Observations
from bridge.gateway.http.scale_contract import (
    Code,
    ScaleFailure,
    ScaleObservation,
    ScaleOperation,
    ScaleResult,
    check,
    check_path,
    observe,
)
from bridge.gateway.requests import RetriedRequest
from bridge.protocol import ScaleConfig, ScaleRequest, ScaleResponse, encode, format_time, now
from bridge.reply_codes import ReplyCode
from bridge.subjects import (
    ALL_OR_NOTHING,
    EXPECTED_REVISION,
    EXPIRES_AT,
    HIGHEST_RANK,
    REQUEST_DIGEST,
    REVISION,
    VICTIMS,
    check_name,
)

_NO_REVISION: Final = 10**18 - 1  # no service has it: such a request can only find its receipt

_CODES: Final[dict[str, Code]] = {
    ReplyCode.STALE_REVISION: "stale_revision",
    ReplyCode.CONFLICT: "operation_conflict",
    ReplyCode.CAPACITY_EXCEEDED: "capacity_exceeded",
    ReplyCode.UNKNOWN_SERVICE: "unknown_service",
    ReplyCode.INVALID_REQUEST: "invalid_request",
    ReplyCode.UNSUPPORTED_CONFIG: "invalid_request",
}


class HttpScale:
    """Answers from `observations`, and asks the Boxes for changes. They have `limit` seconds."""

    def __init__(
        self, connection: Connection, observations: Observations, limit: float = 10.0
    ) -> None:
        self._connection = connection
        self._observations = observations
        self._limit = limit

    async def get(self, service: str) -> ScaleObservation:
        """The state of the service. Raises ScaleFailure."""
        return self._shown(service, await self._known(service))

    async def post(self, service: str, operation: ScaleOperation) -> ScaleResult:
        """Carry out the operation, once however often it is sent. Raises ScaleFailure."""
        try:
            return await self._post(service, operation)
        except ScaleFailure as exc:
            if exc.known:
                with contextlib.suppress(ScaleFailure):  # it is shown if it can be
                    exc.observation = await self.get(service)
            raise

    async def _post(self, service: str, operation: ScaleOperation) -> ScaleResult:
        check_path(service, operation)
        observation = await self._known(service)
        failure = _problem(operation, observation)
        if failure is not None and failure.code == "stale_revision":  # this view may be older
            observation = await self._known(service, fresh=True)
            failure = _problem(operation, observation)
        if failure is None:
            return await self._ask(operation, observation.revision)
        if not failure.may_repeat:
            raise failure
        try:
            return await self._ask(operation, _NO_REVISION)
        except ScaleFailure as exc:
            raise (failure if exc.code == "stale_revision" else exc) from exc

    async def _known(self, service: str, *, fresh: bool = False) -> Observation:
        """The observation of a service that exists. Raises ScaleFailure."""
        try:
            name = check_name("service", service)
            read = self._observations.read if fresh else self._observations.get
            observation = await read(name)
        except NameRefused as exc:
            raise _unknown(service) from exc
        except (BusError, ScaleError) as exc:
            raise ScaleFailure("observation_failed", str(exc), known=False) from exc
        if observation.target is None:
            raise _unknown(service)
        return observation

    def _shown(self, service: str, observation: Observation) -> ScaleObservation:
        return observe(observation, self._observations.routes(service, observation))

    async def _ask(self, operation: ScaleOperation, revision: int) -> ScaleResult:
        """Ask the Boxes for the change, at this revision of the service. Raises ScaleFailure."""
        service = operation.service
        body = ScaleRequest(
            service=service,
            replicas=operation.desired_replicas,
            config=ScaleConfig(),
            request_id=operation.operation_id,
        )
        headers = {
            EXPIRES_AT: format_time(now() + timedelta(seconds=self._limit)),
            EXPECTED_REVISION: str(revision),
            ALL_OR_NOTHING: "true",
            VICTIMS: HIGHEST_RANK,
            REQUEST_DIGEST: operation.digest,
        }
        deadline = asyncio.get_running_loop().time() + self._limit
        request = RetriedRequest(
            self._connection.subjects.scale,
            encode(body),
            deadline,
            self._limit,
            headers,
            body.request_id,
        )
        try:
            response = await request.response(self._connection, ScaleResponse)
        except (BusError, ScaleError) as exc:
            raise ScaleFailure("reconcile_failed", str(exc)) from exc
        if not response.accepted:
            code = _CODES.get(request.code or "", "reconcile_failed")
            raise ScaleFailure(code, response.error or "refused")
        granted = int(request.reply_headers.get(REVISION, "0"))
        self._observations.take(service, target=response.target_replicas, revision=granted)
        return ScaleResult(
            accepted=True,
            actual_replicas=response.current_replicas,
            message=f"the target of {service} is {response.target_replicas}",
            revision=str(granted),
        )


def _problem(operation: ScaleOperation, observation: Observation) -> ScaleFailure | None:
    try:
        check(operation, observation)
    except ScaleFailure as exc:
        return exc
    return None


def _unknown(service: str) -> ScaleFailure:
    why = f"unknown service {service[:80]}: no live Box lists it"
    return ScaleFailure("unknown_service", why, known=False)
