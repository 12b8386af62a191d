"""A service's endpoints, always current: whom a gateway may send a request to, at any moment.

What a `RouteTable` promises:

- It is complete when it is opened: the snapshot, then what comes, with no gap between.
- An instance is out as soon as it is told that it drains, ends or is unhealthy, and for good if it
  was withdrawn. Absence alone withdraws nothing: a lease does, by the own clock, and that does not
  run while the bus cannot be heard, nor for one lease after.
- An outage of the bus empties nothing; `stale_for` says how old the table is meanwhile.
- A slow reader of its changes costs itself: it gets the whole table anew.
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

BACKLOG: Final = 10_000  # changes that wait for a slow reader before it gets the table anew


class RouteTable:
    """The routes of some services, or of all. See the module::

    async with RouteTable.open(connection, "web") as table:
        async with table.lease("web") as route:
            ...  # send the request to route.endpoint
    """

    def __init__(
        self, connection: Connection, services: frozenset[str] | None, timing: Timing
    ) -> None:
        self._book = RouteState(timing.registration_ttl)
        self._book.telling = False  # until somebody reads
        self._feed = RouteFeed(
            connection, self._book, services, timing.registration_ttl, self._tell
        )
        self._chance = random.Random().randrange  # noqa: S311 - nobody gains by guessing it
        self._inflight: dict[Key, int] = {}
        self._readers: weakref.WeakSet[Changes] = weakref.WeakSet()
        self._moved = asyncio.Event()

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

        `timing.registration_ttl` is the lease, in seconds; the fleet's must be the same. Raises
        NameRefused for a service that can have no subject, StoreUnsuitable where this user may not
        read the streams. Waits for a fleet that does not exist yet.
        """
        names = [services] if isinstance(services, str) else services
        wanted = None if names is None else frozenset(check_name("service", x) for x in names)
        table = cls(connection, wanted, timing or Timing())
        feed = table._feed
        async with task_scope() as tasks:
            listeners = await feed.listen()
            try:
                for source in feed.sources:
                    follower = source.follower
                    tasks.create_task(follower.run(), name=f"routes-{follower.stream}")
                    await source.live.wait()
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
        return self._book.routes.of(service)

    def __iter__(self) -> Iterator[Route]:
        """All routes; do not await between them."""
        return iter(self._book.routes)

    def __len__(self) -> int:
        return len(self._book.routes)

    def pick(self, service: str) -> Route:
        """Of two routes, chosen at random, the one with fewer of this table's leases in flight.

        Raises NoRoute when there is none.
        """
        route = self._book.routes.pick(service, self._chance, self._inflight)
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
        """How many of this table's leases are on the instance of `route`."""
        return self._inflight.get(route.key, 0)

    def changes(self, *, backlog: int = BACKLOG) -> Changes:
        """What changes from now on, to be read with ``async for``. See `Changes`."""
        self._book.telling = True
        reader = Changes(self._book, backlog)
        self._readers.add(reader)
        return reader

    async def wait_ready(self, service: str, n: int, *, timeout: float = 120.0) -> None:
        """Return when `service` has at least `n` routes. Raises WaitTimeout."""
        count = self._book.routes.count
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while count(service) < n:
                    self._moved.clear()
                    await self._moved.wait()
                return
        raise WaitTimeout(service, count(service), n, timeout)

    # ── how good it is ───────────────────────────────────────────────────────────────────

    def stale_for(self) -> float:
        """Seconds since the table was known to be current; 0.0 while it is."""
        return self._feed.stale_for()

    @property
    def held_over(self) -> frozenset[Key]:
        """Service and instance id of those whose lease has run out and who are kept for one more,
        because half of all leases, and three at least, would have run out at once.
        """
        return frozenset(self._book.held_over)

    def _tell(self) -> None:
        news = self._book.take_news()
        for reader in self._readers:
            reader.push(news)
        self._moved.set()


class Changes:
    """A reader of a table's changes: first a `Resync` with the table as it stands, then a `Put` or
    a `Delete` for each change, numbered without a gap.

    One that falls further behind than its backlog gets a `Resync` in place of all that it has not
    read. It ends with the table.
    """

    def __init__(self, book: RouteState, backlog: int) -> None:
        self._book = book
        self._waiting: deque[Change] = deque()
        self._backlog = backlog
        self._behind = True
        self._ended = False
        self._arrived = asyncio.Event()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        while not (self._behind or self._waiting):
            if self._ended:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        if self._behind:
            self._behind = False
            return Resync(seq=self._book.seq, routes=tuple(self._book.routes))
        return self._waiting.popleft()

    def push(self, news: Sequence[Change]) -> None:
        """The table has changed."""
        if not self._behind:
            self._waiting.extend(news)
            if len(self._waiting) > self._backlog:
                self._waiting.clear()
                self._behind = True
        self._arrived.set()

    def end(self) -> None:
        """The table is no longer kept."""
        self._ended = True
        self._arrived.set()
