"""The routes in the forms in which other programs discover targets. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from msgspec import Struct, field

from bridge.gateway.routes.index import Route


class PrometheusGroup(Struct, frozen=True, kw_only=True):
    """Targets with the same labels, as Prometheus' ``http_sd_config`` reads them."""

    targets: list[str]
    labels: dict[str, str]


class TraefikServer(Struct, frozen=True, kw_only=True):
    """One instance."""

    url: str


class TraefikLoadBalancer(Struct, frozen=True, kw_only=True):
    """The instances of a service."""

    servers: list[TraefikServer]


class TraefikService(Struct, frozen=True, kw_only=True, rename="camel"):
    """A service of Traefik."""

    load_balancer: TraefikLoadBalancer


class TraefikHttp(Struct, frozen=True, kw_only=True):
    """The HTTP part of a dynamic configuration."""

    services: dict[str, TraefikService] = field(default_factory=dict)


class TraefikConfiguration(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A dynamic configuration; without services it has no `http`, as Traefik wants it."""

    http: TraefikHttp | None = None


def prometheus(routes: Iterable[Route]) -> list[PrometheusGroup]:
    """A target for each route, with its service, its instance id and its host as labels."""
    return [
        PrometheusGroup(
            targets=[route.endpoint],
            labels={
                "box_service": route.service,
                "box_instance_id": route.instance_id,
                "box_host": route.host,
            },
        )
        for route in _sorted(routes)
    ]


def traefik(routes: Iterable[Route]) -> TraefikConfiguration:
    """A service ``<name>`` for each service that has routes; refer to it as ``<name>@http``."""
    services = {
        service: TraefikService(
            load_balancer=TraefikLoadBalancer(
                servers=[TraefikServer(url=f"http://{route.endpoint}") for route in group]
            )
        )
        for service, group in groupby(_sorted(routes), key=lambda route: route.service)
    }
    return TraefikConfiguration(http=TraefikHttp(services=services) if services else None)


def _sorted(routes: Iterable[Route]) -> list[Route]:
    return sorted(routes, key=lambda route: route.key)
