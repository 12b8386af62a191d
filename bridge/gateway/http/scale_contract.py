"""The A3S scale contract over HTTP, as a3s-gateway 1.1.1 speaks it: messages and rules. Pure.

The order of the checks, the statuses and the codes are those of the A3S Box 3.3.0. A repeated
operation comes before every check of its content, so each check that fails first looks for the
receipt of the operation: `ScaleFailure.may_repeat`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from bridge.gateway.http.observation import Observation
from bridge.gateway.routes.index import Route
from bridge.protocol import U32, encode

SCHEMA: Final = 1
MAX_BODY: Final = 64 * 1024  # bytes

_HTTP_PORT: Final = "80"  # an a3s-gateway refuses a URL whose port is the default one

Code = Literal[
    "service_mismatch",
    "unknown_service",
    "operation_conflict",
    "unsupported_schema",
    "invalid_request",
    "stale_revision",
    "invalid_direction",
    "capacity_exceeded",
    "reconcile_failed",
    "observation_failed",
]

STATUS: Final[dict[Code, int]] = {
    "service_mismatch": 422,
    "unknown_service": 404,
    "operation_conflict": 409,
    "unsupported_schema": 422,
    "invalid_request": 422,
    "stale_revision": 409,
    "invalid_direction": 422,
    "capacity_exceeded": 507,
    "reconcile_failed": 503,
    "observation_failed": 503,
}


class Endpoint(Struct, frozen=True, kw_only=True):
    """An instance that takes traffic. `slot` is its rank."""

    instance_id: str
    slot: U32
    url: str


class ScaleObservation(Struct, frozen=True, kw_only=True):
    """The answer to GET: ready_replicas ≤ replicas, slots < replicas, nothing twice."""

    replicas: U32
    revision: str
    ready_replicas: U32
    endpoints: list[Endpoint]


class ScaleOperation(Struct, frozen=True, kw_only=True):
    """The body of a POST."""

    schema_version: U32
    operation_id: Annotated[str, Meta(max_length=128)]
    service: str
    direction: str
    current_replicas: U32
    desired_replicas: U32
    expected_revision: str | None = None
    reason: str = ""

    @property
    def digest(self) -> str:
        """A hash of the whole operation: a repeat must be the same."""
        return hashlib.blake2s(encode(self), digest_size=16).hexdigest()

    @property
    def revision(self) -> int | None:
        """The expected revision as a number; None if it is none."""
        text = self.expected_revision or ""
        return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else None


class ScaleResult(Struct, frozen=True, kw_only=True):
    """The answer to a POST that was carried out."""

    accepted: bool
    actual_replicas: U32
    message: str
    revision: str


class ScaleProblem(Struct, frozen=True, kw_only=True):
    """The body of an error. `observation` is the state of the service, null if it is unknown."""

    code: Code
    message: str
    observation: ScaleObservation | None = None


class ScaleFailure(Exception):
    """A request is refused. `may_repeat`: unless it repeats an operation that was accepted.

    `known`: the service exists, so that its `observation` can be shown.
    """

    def __init__(
        self, code: Code, message: str, *, known: bool = True, may_repeat: bool = False
    ) -> None:
        super().__init__(message)
        self.code: Code = code
        self.message = message
        self.known = known
        self.observation: ScaleObservation | None = None
        self.may_repeat = may_repeat


def observe(observation: Observation, ranked: Sequence[tuple[int, Route]]) -> ScaleObservation:
    """The answer to GET from routes by rank.

    Left out is a route on port 80, and the second one at an endpoint: the gateway would refuse the
    whole answer.
    """
    endpoints, seen = [], set()
    for rank, route in ranked:
        if route.endpoint.rpartition(":")[2] == _HTTP_PORT or route.endpoint in seen:
            continue
        seen.add(route.endpoint)
        url = f"http://{route.endpoint}"
        endpoints.append(Endpoint(instance_id=route.instance_id, slot=rank, url=url))
    return ScaleObservation(
        replicas=observation.target or 0,
        revision=str(observation.revision),
        ready_replicas=len(endpoints),
        endpoints=endpoints,
    )


def check_path(service: str, operation: ScaleOperation) -> None:
    """Raise ScaleFailure if the path names another service than the body."""
    if operation.service != service:
        raise ScaleFailure(
            "service_mismatch",
            f"the path names {service}, the body names {operation.service[:80]}",
            known=False,
        )


def check(operation: ScaleOperation, observation: Observation) -> None:
    """Raise ScaleFailure if the operation does not fit the service as it is observed."""
    target, desired = observation.target or 0, operation.desired_replicas
    if operation.schema_version != SCHEMA:
        raise ScaleFailure(
            "unsupported_schema",
            f"schema_version {operation.schema_version} is not supported: use {SCHEMA}",
            may_repeat=True,
        )
    if not operation.operation_id.strip() or not operation.service.strip():
        raise ScaleFailure("invalid_request", "operation_id and service must not be blank")
    if operation.revision != observation.revision or operation.current_replicas != target:
        raise ScaleFailure(
            "stale_revision",
            f"{operation.service} has revision {observation.revision} and {target} replicas; "
            f"the operation expects {operation.expected_revision} and "
            f"{operation.current_replicas}",
            may_repeat=True,
        )
    direction = "Up" if desired > target else "Down" if desired < target else ""
    if operation.direction != direction:
        raise ScaleFailure(
            "invalid_direction",
            f"{desired} replicas instead of {target} are not {operation.direction[:20]!r}",
            may_repeat=True,
        )
