"""Any number of local consumers on one subscription, each at its own pace.

Each message crosses the bus once, is decoded once, and is kept in one ring buffer. A consumer is
only a cursor into that ring, without a queue, a task or a copy of its own. The hub never waits for
a consumer: one that falls behind the ring gets a `Gap`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Final, Self

from msgspec.structs import replace

from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.jetstream.follower import Follower
from bridge.bus.jetstream.start_position import Reset, Start
from bridge.errors import ConfigError
from bridge.gateway.events.filter import EventFilter, Services, read_event
from bridge.gateway.events.stream import Gap
from bridge.protocol import InstanceEvent, InstanceState
from bridge.tasks import task_scope

BACKLOG: Final = 10_000  # events in the ring buffer; about 5 MB


class EventHub:
    """Live events for many consumers within this process::

        async with EventHub.open(connection) as hub:
            async with hub.subscribe(service="web") as events:
                async for event in events:
                    ...

    Every consumer gets each event that it subscribed to once and in order, across reconnects and
    server restarts. A `Gap` stands for events that this consumer was too slow for, a `Reset` for
    events that the hub itself missed.
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
        self._arrival = asyncio.Event()
        self.follower = Follower(
            connection,
            connection.subjects.events_stream,
            self._take,
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

        When the block ends, each consumer's iteration ends after the events in the ring. Raises
        NameRefused for an invalid service name, ConfigError for a `backlog` that is not above 0,
        and StoreUnsuitable if this NATS user may not read the stream. Waits for a stream that does
        not exist yet.
        """
        hub = cls(connection, EventFilter.of(service, states), backlog)
        try:
            async with task_scope() as tasks:
                tasks.create_task(hub.follower.run(), name="event-hub")
                await hub.follower.live.wait()
                yield hub
        finally:
            hub.closed = True
            hub._arrival.set()

    def subscribe(
        self,
        service: Services = None,
        *,
        states: Iterable[InstanceState] | None = None,
        backlog: int | None = None,
    ) -> HubEvents:
        """A consumer of the matching events that arrive from now on; without arguments of every
        event that the hub follows.

        Raises ConfigError for a service that the hub does not follow. A consumer that falls more
        than `backlog` events behind, counted over everything that the hub follows, gets a `Gap`; at
        most, and by default, the hub's `backlog`.
        """
        wanted = EventFilter.of(service, states)
        available, services = self._wanted.services, wanted.services
        if available and services and (others := services - available):
            raise ConfigError("EventHub", f"the hub does not follow {', '.join(sorted(others))}")
        return HubEvents(self, wanted, min(backlog or self.backlog, self.backlog))

    def at(self, number: int) -> tuple[int, InstanceEvent | Reset]:
        """The stream sequence and the item of this number, which must still be in the ring."""
        return self._ring[number % self.backlog]

    async def more(self) -> None:
        """Return when an item arrives, or the hub is closed."""
        await self._arrival.wait()

    # ── called by the Follower ───────────────────────────────────────────────────────────

    def _take(self, message: Message, seq: int, time_ns: int) -> None:
        event = read_event(message, self._connection.metrics)
        if event is not None and self._wanted.takes(event):
            self._put(seq, event)

    def _reset(self, reset: Reset) -> None:
        self.reset = self.head, reset
        self._put(reset.next - 1, reset)

    def _put(self, seq: int, item: InstanceEvent | Reset) -> None:
        if len(self._ring) < self.backlog:
            self._ring.append((seq, item))
        else:
            self._ring[self.head % self.backlog] = seq, item
        self.head += 1
        self._arrival.set()  # wakes the consumers that wait now
        self._arrival.clear()


class HubEvents:
    """One consumer of an `EventHub`: an async iterator over the events from its creation on."""

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
        """Continue with number `to`. A Reset in between comes first, as it starts new sequences."""
        if self._hub.reset is not None:
            number, reset = self._hub.reset
            if self._next <= number < to:
                expected, self.position = self.position + 1, reset.next - 1
                self._next = number + 1
                return replace(reset, expected=expected)
        first, self.position = self.position + 1, self._hub.at(to)[0] - 1
        self._next = to
        return Gap(first=first, last=self.position)
