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
    """The routes by service. A put, a delete and a pick cost the same at any size.

    In a service that Boxes run, instances that register themselves get half of the picks at most,
    however many there are: any of them may register any number of others.
    """

    def __init__(self) -> None:
        self._services: dict[str, _Service] = {}

    def __iter__(self) -> Iterator[Route]:
        for service in self._services.values():
            yield from service.of_boxes.routes
            yield from service.others.routes

    def __len__(self) -> int:
        return sum(map(len, self._services.values()))

    def get(self, service: str, instance_id: str) -> Route | None:
        """The route of one instance, if it has one."""
        found = self._services.get(service)
        return None if found is None else found.get(instance_id)

    def of(self, service: str) -> tuple[Route, ...]:
        """The routes of one service; the tuple is built again only after a change."""
        found = self._services.get(service)
        if found is None:
            return ()
        if found.snapshot is None:
            found.snapshot = (*found.of_boxes.routes, *found.others.routes)
        return found.snapshot

    def count(self, service: str) -> int:
        """How many routes a service has."""
        found = self._services.get(service)
        return 0 if found is None else len(found)

    def put(self, route: Route) -> None:
        """Add a route, or replace that of the same instance."""
        service = self._services.get(route.service)
        if service is None:
            service = self._services[route.service] = _Service()
        service.snapshot = None
        into, other = service.of_boxes, service.others
        if not route.host:
            into, other = other, into
        if route.instance_id in other.places:  # its registration names a host, or none, now
            other.delete(route.instance_id)
        into.put(route)

    def delete(self, service_name: str, instance_id: str) -> None:
        """Remove the route of an instance, which must exist."""
        service = self._services[service_name]
        service.snapshot = None
        known = instance_id in service.others.places
        (service.others if known else service.of_boxes).delete(instance_id)
        if not len(service):
            del self._services[service_name]

    def pick(self, service: str, chance: Chance, inflight: Mapping[Key, int]) -> Route | None:
        """One of two routes that `chance` selects, with fewer in flight; None without a route."""
        found = self._services.get(service)
        if found is None:
            return None
        routes = found.group(chance).routes
        first = chance(len(routes))
        if len(routes) == 1:
            return routes[first]
        second = chance(len(routes) - 1)
        one, other = routes[first], routes[second + (second >= first)]
        return other if inflight.get(other.key, 0) < inflight.get(one.key, 0) else one


class _Group:
    """Routes, and the index of each instance in them."""

    __slots__ = ("places", "routes")

    def __init__(self) -> None:
        self.routes: list[Route] = []
        self.places: dict[str, int] = {}

    def put(self, route: Route) -> None:
        place = self.places.setdefault(route.instance_id, len(self.routes))
        if place < len(self.routes):
            self.routes[place] = route
        else:
            self.routes.append(route)

    def delete(self, instance_id: str) -> None:
        place = self.places.pop(instance_id)
        last = self.routes.pop()
        if last.instance_id != instance_id:  # the last one moves into the gap
            self.routes[place] = last
            self.places[last.instance_id] = place


class _Service:
    """The routes that Boxes registered, and the others; `snapshot` is the tuple for readers."""

    __slots__ = ("of_boxes", "others", "snapshot")

    def __init__(self) -> None:
        self.of_boxes = _Group()
        self.others = _Group()
        self.snapshot: tuple[Route, ...] | None = None

    def __len__(self) -> int:
        return len(self.of_boxes.routes) + len(self.others.routes)

    def get(self, instance_id: str) -> Route | None:
        for group in (self.of_boxes, self.others):
            if (place := group.places.get(instance_id)) is not None:
                return group.routes[place]
        return None

    def group(self, chance: Chance) -> _Group:
        """The group to pick from: in proportion, and the others half of the time at most."""
        boxes, others = len(self.of_boxes.routes), len(self.others.routes)
        if not others:
            return self.of_boxes
        if not boxes:
            return self.others
        return self.of_boxes if chance(boxes + min(boxes, others)) < boxes else self.others
