"""Routes, their changes, and an index whose operations cost the same at any size.

Pure: the caller passes the random numbers and keeps the queues.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from msgspec import Struct

from bridge.protocol import InstanceState, Time

Key = tuple[str, str]
"""A service and an instance id."""

Chance = Callable[[int], int]
"""A random number from 0 up to the given one, exclusive: `random.randrange`."""


class Route(Struct, frozen=True, kw_only=True, gc=False):
    """An instance that takes traffic at `endpoint` (``host:port``, IPv6 in brackets).

    `state` is Ready or Busy, by the last event; `host` is the Box's, "" if the registration names
    none. `metadata` and `started_at` are as registered. Routes with equal metadata share one dict,
    so callers must not change it.
    """

    service: str
    instance_id: str
    endpoint: str
    state: InstanceState
    host: str
    metadata: dict[str, str]
    started_at: Time

    @property
    def key(self) -> Key:
        """The unique key of the route in a table."""
        return self.service, self.instance_id


class Put(Struct, frozen=True, kw_only=True, gc=False, tag="put", tag_field="change"):
    """`route` takes traffic from now on, or has changed."""

    seq: int
    route: Route


class Delete(Struct, frozen=True, kw_only=True, gc=False, tag="delete", tag_field="change"):
    """An instance takes no traffic any more; `reason` is a message for an operator."""

    seq: int
    service: str
    instance_id: str
    reason: str


class Resync(Struct, frozen=True, kw_only=True, tag="resync", tag_field="change"):
    """The whole table after change `seq`; it replaces everything that was reported before."""

    seq: int
    routes: tuple[Route, ...]


Change = Put | Delete | Resync


class RouteIndex:
    """The routes by service. A put, a delete and a pick cost the same at any size."""

    def __init__(self) -> None:
        self._services: dict[str, _Service] = {}

    def __iter__(self) -> Iterator[Route]:
        for service in self._services.values():
            yield from service.routes

    def __len__(self) -> int:
        return sum(len(service.routes) for service in self._services.values())

    def get(self, service: str, instance_id: str) -> Route | None:
        """The route of one instance, if it has one."""
        found = self._services.get(service)
        place = None if found is None else found.places.get(instance_id)
        return None if found is None or place is None else found.routes[place]

    def of(self, service: str) -> tuple[Route, ...]:
        """The routes of one service; the tuple is built again only after a change."""
        found = self._services.get(service)
        if found is None:
            return ()
        if found.snapshot is None:
            found.snapshot = tuple(found.routes)
        return found.snapshot

    def count(self, service: str) -> int:
        """How many routes a service has."""
        found = self._services.get(service)
        return 0 if found is None else len(found.routes)

    def put(self, route: Route) -> None:
        """Add a route, or replace that of the same instance."""
        service = self._services.get(route.service)
        if service is None:
            service = self._services[route.service] = _Service()
        routes = service.routes
        place = service.places.setdefault(route.instance_id, len(routes))
        service.snapshot = None
        if place < len(routes):
            routes[place] = route
        else:
            routes.append(route)

    def delete(self, service_name: str, instance_id: str) -> None:
        """Remove the route of an instance, which must exist."""
        service = self._services[service_name]
        place = service.places.pop(instance_id)
        last = service.routes.pop()
        service.snapshot = None
        if last.instance_id != instance_id:  # the last one moves into the gap
            service.routes[place] = last
            service.places[last.instance_id] = place
        if not service.routes:
            del self._services[service_name]

    def pick(self, service: str, chance: Chance, inflight: Mapping[Key, int]) -> Route | None:
        """One of two routes that `chance` selects, with fewer in flight; None without a route."""
        found = self._services.get(service)
        if found is None:
            return None
        routes = found.routes
        first = chance(len(routes))
        if len(routes) == 1:
            return routes[first]
        second = chance(len(routes) - 1)
        one, other = routes[first], routes[second + (second >= first)]
        return other if inflight.get(other.key, 0) < inflight.get(one.key, 0) else one


class _Service:
    """`places` maps an instance to its index in `routes`; `snapshot` is the tuple for readers."""

    __slots__ = ("places", "routes", "snapshot")

    def __init__(self) -> None:
        self.routes: list[Route] = []
        self.places: dict[str, int] = {}
        self.snapshot: tuple[Route, ...] | None = None
