"""The endpoints of services that take traffic now.

What a `RouteTable` promises:

- It is complete when it is opened: it reads the snapshot, then each change, without a gap.
- The route of an instance is removed as soon as the instance is reported draining, ended or
  unhealthy; after a withdrawal it never returns. A missing renewal removes the route only when the
  lease expires by the client's own clock. Leases do not run while the client is cut off, nor for
  one lease after.
- An outage of the bus removes no route; `stale_for` is the age of the table meanwhile.
- A slow reader of its changes delays no other reader: it gets the whole table again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import weakref
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Final, Self

from bridge.bus.core.connection import Connection
from bridge.gateway.errors import NoRoute, WaitTimeout
from bridge.gateway.routes.feed import RouteFeed
from bridge.gateway.routes.index import Change, Key, Resync, Route
from bridge.gateway.routes.state import RouteState
from bridge.settings import Timing
from bridge.subjects import check_name
from bridge.tasks import task_scope

BACKLOG: Final = 10_000  # changes that wait for a slow reader before a Resync replaces them


class RouteTable:
    """The routes of some services, or of all. See the module::

    async with RouteTable.open(connection, "web") as table:
        async with table.lease("web") as route:
            ...  # send the request to route.endpoint
    """

    def __init__(
        self, connection: Connection, services: frozenset[str] | None, timing: Timing
    ) -> None:
        self._state = RouteState(timing.registration_ttl)
        self._state.record_changes = False  # until there is a reader
        self._feed = RouteFeed(
            connection, self._state, services, timing.registration_ttl, self._on_change
        )
        self._chance = random.Random().randrange  # noqa: S311 - a guess gains nothing
        self._inflight: dict[Key, int] = {}
        self._readers: weakref.WeakSet[Changes] = weakref.WeakSet()
        self._change = asyncio.Event()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        connection: Connection,
        services: str | Iterable[str] | None = None,
        *,
        timing: Timing | None = None,
    ) -> AsyncIterator[RouteTable]:
        """The table of one service, of several, or of all (None), complete when the block begins.

        `timing.registration_ttl` is the lease, in seconds; it must be that of the fleet. Raises
        NameRefused for an invalid service name, StoreUnsuitable if this NATS user may not read the
        streams. Waits for a fleet that does not exist yet.
        """
        names = [services] if isinstance(services, str) else services
        wanted = None if names is None else frozenset(check_name("service", x) for x in names)
        table = cls(connection, wanted, timing or Timing())
        feed = table._feed
        async with task_scope() as tasks:
            listeners = await feed.listen()
            try:
                for follower in feed.followers:
                    tasks.create_task(follower.run(), name=f"routes-{follower.stream}")
                    await follower.live.wait()
                tasks.create_task(feed.tick(), name="routes-leases")
                yield table
            finally:
                for listener in listeners:
                    await listener.close()
                for reader in table._readers:
                    reader.end()

    # ── reading ──────────────────────────────────────────────────────────────────────────

    def endpoints(self, service: str) -> tuple[Route, ...]:
        """The routes of `service`, in no particular order; empty if it has none."""
        return self._state.routes.of(service)

    def __iter__(self) -> Iterator[Route]:
        """All routes; do not await between them."""
        return iter(self._state.routes)

    def __len__(self) -> int:
        return len(self._state.routes)

    def pick(self, service: str) -> Route:
        """One of two random routes: the one with fewer of this table's leases in flight.

        Raises NoRoute when there is none.
        """
        route = self._state.routes.pick(service, self._chance, self._inflight)
        if route is None:
            raise NoRoute(service, self.stale_for())
        return route

    @contextlib.asynccontextmanager
    async def lease(self, service: str) -> AsyncIterator[Route]:
        """Pick a route, and count it as in flight until the block ends. Raises NoRoute."""
        route = self.pick(service)
        inflight, key = self._inflight, route.key
        inflight[key] = inflight.get(key, 0) + 1
        try:
            yield route
        finally:
            inflight[key] -= 1
            if not inflight[key]:
                del inflight[key]

    def inflight(self, route: Route) -> int:
        """How many of this table's leases are in flight on the instance of `route`."""
        return self._inflight.get(route.key, 0)

    def changes(self, *, backlog: int = BACKLOG) -> Changes:
        """The changes from now on, to be read with ``async for``. See `Changes`."""
        self._state.record_changes = True
        reader = Changes(self._state, backlog)
        self._readers.add(reader)
        return reader

    async def wait_ready(self, service: str, n: int, *, timeout: float = 120.0) -> None:
        """Return when `service` has at least `n` routes. Raises WaitTimeout."""
        count = self._state.routes.count
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while count(service) < n:
                    self._change.clear()
                    await self._change.wait()
                return
        raise WaitTimeout(service, count(service), n, timeout)

    def blocker(self, service: str, instance_id: str) -> str | None:
        """Why an instance has no route; None if it has one."""
        return self._state.blocker((service, instance_id))

    # ── its age ───────────────────────────────────────────────────────────────────

    def stale_for(self) -> float:
        """Seconds since the table was last known to be current; 0.0 while it is."""
        return self._feed.stale_for()

    @property
    def held_over(self) -> frozenset[Key]:
        """Service and instance id of each route that is kept for one more lease: its lease expired
        together with half of all leases, and at least three.
        """
        return frozenset(self._state.held_over)

    def _on_change(self) -> None:
        changes = self._state.take_changes()
        for reader in self._readers:
            reader.push(changes)
        self._change.set()


class Changes:
    """A reader of a table's changes: first a `Resync` with the current table, then a `Put` or a
    `Delete` for each change, numbered without a gap.

    A reader that falls behind by more than its backlog gets a `Resync` in place of the changes that
    it has not read. The iteration ends with the table.
    """

    def __init__(self, state: RouteState, backlog: int) -> None:
        self._state = state
        self._waiting: deque[Change] = deque()
        self._backlog = backlog
        self._behind = True
        self._ended = False
        self._arrival = asyncio.Event()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        while not (self._behind or self._waiting):
            if self._ended:
                raise StopAsyncIteration
            self._arrival.clear()
            await self._arrival.wait()
        if self._behind:
            self._behind = False
            return Resync(seq=self._state.seq, routes=tuple(self._state.routes))
        return self._waiting.popleft()

    def push(self, changes: Sequence[Change]) -> None:
        """Take the next changes of the table."""
        if not self._behind:
            self._waiting.extend(changes)
            if len(self._waiting) > self._backlog:
                self._waiting.clear()
                self._behind = True
        self._arrival.set()

    def end(self) -> None:
        """The table is closed."""
        self._ended = True
        self._arrival.set()
