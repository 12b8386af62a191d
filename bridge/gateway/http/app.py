"""The routes of the gateway daemon over HTTP, and how errors become answers.

It imports Litestar: `bridge.gateway.http.server` imports it when a daemon starts.
"""

# Without `from __future__ import annotations`: Litestar reads the annotations of the handlers.

import hmac
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Final

from litestar import Litestar, MediaType, Request, Response, Router, get, post
from litestar.connection import ASGIConnection
from litestar.exceptions import HTTPException, NotAuthorizedException
from litestar.handlers.base import BaseRouteHandler
from litestar.openapi import ResponseSpec
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.params import FromPath, JSONBody, QueryParameter
from litestar.response import ServerSentEvent
from litestar.response.sse import ServerSentEventMessage
from msgspec import Struct

from bridge.admin_protocol import Host, Service
from bridge.errors import BusError, NotPermitted, ProtocolError
from bridge.gateway.errors import ScaleError
from bridge.gateway.http import discovery, streams
from bridge.gateway.http.gateway_metrics import GatewayMetrics
from bridge.gateway.http.observation import Observations
from bridge.gateway.http.scale import HttpScale
from bridge.gateway.http.scale_contract import (
    MAX_BODY,
    STATUS,
    ScaleFailure,
    ScaleObservation,
    ScaleOperation,
    ScaleProblem,
    ScaleResult,
)
from bridge.gateway.operator import Operator
from bridge.gateway.routes.index import Route
from bridge.gateway.routes.table import RouteTable
from bridge.protocol import InstancesResponse
from bridge.version import VERSION

_log = logging.getLogger(__name__)

_PROBLEMS: Final = {
    status: ResponseSpec(ScaleProblem, description="the code and the reason")
    for status in sorted({400, 413, *STATUS.values()})
}


class Problem(Struct, frozen=True, kw_only=True):
    """The body of an error outside ``/v1/scale``."""

    code: str
    message: str


class Health(Struct, frozen=True, kw_only=True):
    """The age of the routes in seconds, and their number."""

    stale_for: float
    routes: int


_UNAUTHORIZED: Final = {401: ResponseSpec(Problem, description="no token, or a wrong one")}
_ERRORS: Final = {
    400: ResponseSpec(Problem, description="the request is invalid"),
    403: ResponseSpec(Problem, description="the NATS user of the daemon may not ask for it"),
    503: ResponseSpec(Problem, description="no Box answers"),
    **_UNAUTHORIZED,
}


def build_app(
    scale: HttpScale, observations: Observations, *, tokens: Sequence[str], stale: float
) -> Litestar:
    """The application. With `tokens` each request under ``/v1`` must bear one of them. The daemon
    is not ready while its routes are older than `stale` seconds.
    """
    guards = [_guard(tokens)] if tokens else []
    handlers = [
        *_scale_handlers(scale),
        *_route_handlers(observations.table),
        *_fleet_handlers(observations),
    ]
    metrics = GatewayMetrics(observations.table)
    return Litestar(
        [
            Router("/v1", route_handlers=handlers, guards=guards),
            *_health_handlers(observations.table, metrics, stale),
        ],
        openapi_config=OpenAPIConfig(
            title="box-bridge gateway",
            version=VERSION,
            path="/",
            use_handler_docstrings=True,
            render_plugins=[JsonRenderPlugin(path="/openapi.json")],
        ),
        exception_handlers={
            ScaleFailure: _scale_failure,
            NotPermitted: _refused(403, "not_permitted"),
            ProtocolError: _refused(400, "invalid_request"),
            BusError: _refused(503, "observation_failed"),
            ScaleError: _refused(503, "observation_failed"),
            HTTPException: _http_error,
            Exception: _bug,
        },
        request_max_body_size=MAX_BODY,
        before_send=[metrics.count],
        logging_config=None,
    )


def _scale_handlers(scale: HttpScale) -> list[Any]:
    """``/v1/scale``."""

    @get("/scale/{service:str}", responses=_PROBLEMS)
    async def get_scale(service: FromPath[str]) -> ScaleObservation:
        """The target of a service, its revision, and the instances that take traffic."""
        return await scale.get(service)

    @post("/scale/{service:str}", status_code=200, responses=_PROBLEMS)
    async def post_scale(service: FromPath[str], data: JSONBody[ScaleOperation]) -> ScaleResult:
        """Change the target of a service, once however often the operation is sent."""
        return await scale.post(service, data)

    return [get_scale, post_scale]


def _route_handlers(table: RouteTable) -> list[Any]:
    """``/v1/routes`` and ``/v1/discovery``."""

    @get("/routes", responses={200: ResponseSpec(list[Route]), **_ERRORS})
    async def routes(watch: Annotated[bool, QueryParameter()] = False) -> Response[Any]:
        """All routes; with `watch` as server-sent events that continue with each change."""
        if watch:
            return _events(streams.routes(table))
        return Response(sorted(table, key=lambda route: route.key), media_type=MediaType.JSON)

    @get("/routes/{service:str}", responses=_ERRORS)
    async def routes_of(service: FromPath[str]) -> list[Route]:
        """The routes of a service."""
        return sorted(table.endpoints(service), key=lambda route: route.key)

    @get("/discovery/prometheus", responses=_ERRORS)
    async def prometheus() -> list[discovery.PrometheusGroup]:
        """The targets of Prometheus' HTTP service discovery."""
        return discovery.prometheus(table)

    @get("/discovery/traefik", responses=_ERRORS)
    async def traefik() -> discovery.TraefikConfiguration:
        """The dynamic configuration of Traefik's HTTP provider: a service for each of the fleet."""
        return discovery.traefik(table)

    return [routes, routes_of, prometheus, traefik]


def _fleet_handlers(observations: Observations) -> list[Any]:
    """What Boxes answer, and events."""
    operator = Operator(observations.connection)

    @get("/services", responses=_ERRORS)
    async def services() -> list[Service]:
        """The services of the fleet, as `box.services` answers."""
        return await operator.services()

    @get("/hosts", responses=_ERRORS)
    async def hosts() -> list[Host]:
        """The hosts of the fleet, as `box.hosts` answers."""
        return await operator.hosts()

    @get("/instances", responses=_ERRORS)
    async def instances(
        service: Annotated[str, QueryParameter()] = "",
    ) -> InstancesResponse:
        """All instances, or those of a service, as `box.instances` answers."""
        return await observations.client.observe(service)

    @get("/events", responses=_ERRORS)
    async def events(
        request: Request[Any, Any, Any], service: Annotated[str, QueryParameter()] = ""
    ) -> ServerSentEvent:
        """Events as they happen, as server-sent events. ``Last-Event-ID`` resumes."""
        last = request.headers.get("last-event-id", "")
        return _events(await streams.events(observations.connection, service, last))

    return [services, hosts, instances, events]


def _health_handlers(table: RouteTable, registry: GatewayMetrics, stale: float) -> list[Any]:
    """For whatever watches the daemon; they need no token."""

    @get("/healthz", responses={})
    async def healthz() -> Health:
        """200 while the daemon runs."""
        return Health(stale_for=table.stale_for(), routes=len(table))

    @get("/readyz", responses={503: ResponseSpec(Health, description="the routes are too old")})
    async def readyz() -> Response[Health]:
        """200 while the routes are current; 503 while they are older than `--stale`."""
        age = table.stale_for()
        health = Health(stale_for=age, routes=len(table))
        return Response(health, status_code=503 if age > stale else 200)

    @get("/metrics", media_type=MediaType.TEXT)
    async def metrics() -> str:
        """Metrics in the text format of Prometheus."""
        return registry.text()

    return [healthz, readyz, metrics]


def _guard(tokens: Sequence[str]) -> Any:
    wanted = [f"Bearer {token}".encode() for token in tokens]

    def check(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        given = connection.headers.get("authorization", "").encode()
        if not any(hmac.compare_digest(given, token) for token in wanted):
            raise NotAuthorizedException("a token is needed: `Authorization: Bearer <token>`")

    return check


def _events(messages: AsyncIterator[ServerSentEventMessage]) -> ServerSentEvent:
    stream = ServerSentEvent(messages, headers={"X-Accel-Buffering": "no"})
    stream.media_type = "text/event-stream"  # the handler's annotation would win
    return stream


def _scale_failure(_: Request[Any, Any, Any], exc: ScaleFailure) -> Response[ScaleProblem]:
    return Response(
        ScaleProblem(code=exc.code, message=exc.message, observation=exc.observation),
        status_code=STATUS[exc.code],
    )


def _refused(status: int, code: str) -> Any:
    def handle(request: Request[Any, Any, Any], exc: Exception) -> Response[Problem]:
        return Response(Problem(code=code, message=str(exc)), status_code=status)

    return handle


def _http_error(request: Request[Any, Any, Any], exc: HTTPException) -> Response[Problem]:
    reasons = "; ".join(
        f"{item.get('key', '')}: {item.get('message', '')}" if isinstance(item, dict) else str(item)
        for item in (exc.extra if isinstance(exc.extra, list) else [])
    )
    code = {401: "unauthorized", 404: "not_found", 405: "method_not_allowed", 413: "too_large"}
    return Response(
        Problem(
            code=code.get(exc.status_code, "invalid_request"),
            message=f"{exc.detail}{f' ({reasons})' if reasons else ''}",
        ),
        status_code=exc.status_code,
        headers=exc.headers,
    )


def _bug(request: Request[Any, Any, Any], exc: Exception) -> Response[Problem]:
    _log.error("a request failed: %s %s", request.method, request.url.path, exc_info=exc)
    return Response(Problem(code="internal_error", message="see the daemon's log"), status_code=500)
