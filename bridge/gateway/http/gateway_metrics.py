"""The metrics of the gateway daemon, in the text format of Prometheus."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from bridge.gateway.routes.table import RouteTable


class GatewayMetrics:
    """Requests by method, path template and status; the size and the age of the route table."""

    def __init__(self, table: RouteTable) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "box_gateway_requests",
            "Requests over HTTP that were answered.",
            ["method", "path", "status"],
            registry=self._registry,
        )
        routes = Gauge(
            "box_gateway_routes", "Instances that take traffic.", registry=self._registry
        )
        routes.set_function(lambda: len(table))
        stale = Gauge(
            "box_gateway_stale_seconds",
            "Seconds since the routes were last known to be current.",
            registry=self._registry,
        )
        stale.set_function(table.stale_for)

    async def count(self, message: Any, scope: Any) -> None:
        """Count a response when it starts; Litestar calls it before it sends."""
        if message["type"] == "http.response.start":
            path = scope.get("path_template") or "other"
            self._requests.labels(scope["method"], path, str(message["status"])).inc()

    def text(self) -> str:
        """All metrics."""
        return generate_latest(self._registry).decode()
