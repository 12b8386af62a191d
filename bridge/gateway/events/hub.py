"""Any number of local consumers on one subscription, each at its own pace.

Each message crosses the bus and is decoded once, and lies in one ring. A consumer is a cursor into
that ring and nothing more: no queue, no task and no copy for each, so a thousand cost what they
read. The hub never waits for a consumer: one that falls behind the ring is told of a `Gap`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Final, Self

from msgspec.structs import replace

from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.jetstream.follower import Follower, Reset, Start
from bridge.errors import ConfigError
from bridge.gateway.events.filter import EventFilter, Services, read_event
from bridge.gateway.events.stream import Gap
from bridge.protocol import InstanceEvent, InstanceState
from bridge.tasks import task_scope

BACKLOG: Final = 10_000  # events in the ring; about 5 MB


class EventHub:
    """Live events for many consumers within this process::

        async with EventHub.open(connection) as hub:
            async with hub.subscribe(service="web") as events:
                async for event in events:
                    ...

    Every consumer sees each event that it subscribed to once and in order, over reconnects and
    server restarts. A `Gap` stands for what it was too slow for, a `Reset` for what nobody got.
    """

    def __init__(self, connection: Connection, wanted: EventFilter, backlog: int) -> None:
        if backlog < 1:
            raise ConfigError("EventHub", "backlog must be above 0")
        self.backlog = backlog
        self.head = 0
        self.reset: tuple[int, Reset] | None = None
        self.closed = False
        self._ring: list[tuple[int, InstanceEvent | Reset]] = []
        self._connection = connection
        self._wanted = wanted
        self._news = asyncio.Event()
        self._begun = asyncio.Event()
        self.follower = Follower(
            connection,
            connection.subjects.events_stream,
            self,
            start=Start.NOW,
            subjects=wanted.subjects(connection.subjects),
            on_reset=self._reset,
        )

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        connection: Connection,
        service: Services = None,
        *,
        states: Iterable[InstanceState] | None = None,
        backlog: int = BACKLOG,
    ) -> AsyncIterator[EventHub]:
        """Follow these services; `backlog` is how many events the ring holds.

        When the block ends, so do the consumers' iterations, each behind what the ring holds.
        Raises NameRefused for a service that can have no subject, StoreUnsuitable where this user
        may not read the stream. Waits for a stream that does not exist yet.
        """
        hub = cls(connection, EventFilter.of(service, states), backlog)
        try:
            async with task_scope() as tasks:
                tasks.create_task(hub.follower.run(), name="event-hub")
                await hub._begun.wait()
                yield hub
        finally:
            hub.closed = True
            hub._news.set()

    def subscribe(
        self,
        service: Services = None,
        *,
        states: Iterable[InstanceState] | None = None,
        backlog: int | None = None,
    ) -> HubEvents:
        """A consumer of every event that arrives from now on and fits; all that the hub follows
        without arguments.

        Raises ConfigError for a service that the hub does not follow. `backlog` is how many events,
        of all that the hub follows, it may fall behind before the oldest are a `Gap` to it; at
        most, and by default, the hub's.
        """
        wanted = EventFilter.of(service, states)
        followed, asked = self._wanted.services, wanted.services
        if followed and asked and (strangers := asked - followed):
            raise ConfigError("EventHub", f"the hub does not follow {', '.join(sorted(strangers))}")
        return HubEvents(self, wanted, min(backlog or self.backlog, self.backlog))

    def at(self, number: int) -> tuple[int, InstanceEvent | Reset]:
        """The item with this number, and its stream sequence; it must still be in the ring."""
        return self._ring[number % self.backlog]

    async def more(self) -> None:
        """Return when something was put, or the hub is closed."""
        await self._news.wait()

    # ── the Follower's sink ──────────────────────────────────────────────────────────────

    def begin(self) -> None:
        """Nothing: events go on where they stopped."""

    def take(self, message: Message, seq: int, time_ns: int) -> None:
        event = read_event(message, self._connection.metrics)
        if event is not None and self._wanted.takes(event):
            self._put(seq, event)

    def complete(self, last_seq: int) -> None:
        self._begun.set()

    def lost(self) -> None:
        """Nothing to say: what was missed meanwhile comes with the next run."""

    def _reset(self, reset: Reset) -> None:
        self.reset = self.head, reset
        self._put(reset.next - 1, reset)

    def _put(self, seq: int, item: InstanceEvent | Reset) -> None:
        if len(self._ring) < self.backlog:
            self._ring.append((seq, item))
        else:
            self._ring[self.head % self.backlog] = seq, item
        self.head += 1
        self._news.set()  # wakes those who wait; after them nobody does until it is read
        self._news.clear()


class HubEvents:
    """One consumer of an `EventHub`: an async iterator, from when it was made on."""

    __slots__ = ("_backlog", "_closed", "_hub", "_next", "_wanted", "position")

    def __init__(self, hub: EventHub, wanted: EventFilter, backlog: int) -> None:
        self.position = hub.follower.position
        self._hub = hub
        self._wanted = wanted
        self._backlog = backlog
        self._next = hub.head
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._closed = True

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> InstanceEvent | Gap | Reset:
        hub = self._hub
        while not self._closed:
            while self._next < hub.head:
                if hub.head - self._next > self._backlog:
                    return self._skip(hub.head - self._backlog)
                seq, item = hub.at(self._next)
                self._next += 1
                self.position = seq
                if isinstance(item, Reset) or self._wanted.takes(item):
                    return item
            if hub.closed:
                break
            await hub.more()
        raise StopAsyncIteration

    def _skip(self, to: int) -> Gap | Reset:
        """Go on with number `to`; a Reset on the way is told first, for the numbers begin anew."""
        if self._hub.reset is not None:
            number, reset = self._hub.reset
            if self._next <= number < to:
                expected, self.position = self.position + 1, reset.next - 1
                self._next = number + 1
                return replace(reset, expected=expected)
        first, self.position = self.position + 1, self._hub.at(to)[0] - 1
        self._next = to
        return Gap(first=first, last=self.position)
