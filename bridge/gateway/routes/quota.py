"""How many instances a service, and one registrant of it, may have in a route table. Pure.

A registrant is a Box, by its host, or the address of an instance that registers itself. One that
sends any number of registrations gets its own share of the places, and no place of another one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final, TypeVar

from bridge.gateway.routes.index import Route

SERVICE_LIMIT: Final = 50_000  # instances of one service: half of a table
REGISTRANT_LIMIT: Final = 10_000  # instances of one service that one registrant has

T = TypeVar("T")

Registrant = tuple[str, str, str]
"""A service, and a host or an address."""


class Quota:
    """Counts registered instances."""

    def __init__(self) -> None:
        self._services: Counter[str] = Counter()
        self._registrants: Counter[Registrant] = Counter()

    def has_room(self, route: Route) -> bool:
        """Whether another instance may be registered as `route`."""
        return (
            self._services.get(route.service, 0) < SERVICE_LIMIT
            and self._registrants.get(_registrant(route), 0) < REGISTRANT_LIMIT
        )

    def admit(self, route: Route) -> bool:
        """Count an instance if there is room; whether there was. Half the cost of two calls."""
        service, registrant = route.service, _registrant(route)
        of_service = self._services.get(service, 0)
        own = self._registrants.get(registrant, 0)
        if of_service >= SERVICE_LIMIT or own >= REGISTRANT_LIMIT:
            return False
        self._services[service] = of_service + 1
        self._registrants[registrant] = own + 1
        return True

    def add(self, route: Route) -> None:
        """Count an instance."""
        self._services[route.service] += 1
        self._registrants[_registrant(route)] += 1

    def remove(self, route: Route) -> None:
        """Count an instance no longer."""
        _decrease(self._services, route.service)
        _decrease(self._registrants, _registrant(route))

    def add_all(self, routes: Iterable[Route]) -> bool:
        """Count the instances of `routes` unless one of them has no room; whether they had."""
        routes = list(routes)
        services = Counter(route.service for route in routes) + self._services
        registrants = Counter(map(_registrant, routes)) + self._registrants
        if max(services.values(), default=0) > SERVICE_LIMIT:
            return False
        if max(registrants.values(), default=0) > REGISTRANT_LIMIT:
            return False
        self._services, self._registrants = services, registrants
        return True


def _decrease(counts: Counter[T], key: T) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]


def _registrant(route: Route) -> Registrant:
    host = route.host
    return route.service, host, "" if host else route.endpoint.rpartition(":")[0]
