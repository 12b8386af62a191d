"""Following what happens to instances, as an async iterator that never loses silently."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from typing import Final, Self

from msgspec import Struct

from bridge.bus.connection import Connection
from bridge.bus.follow import Follower, Start
from bridge.bus.message import Message
from bridge.errors import ProtocolError
from bridge.protocol import InstanceEvent, decode
from bridge.subjects import last_token
from bridge.tasks import task_scope

BACKLOG: Final = 10_000  # events that wait for a slow reader before the oldest gap opens


class Gap(Struct, frozen=True, kw_only=True):
    """Events that this reader was too slow for: those with the stream's sequences `first` to
    `last`. They are still in the stream.
    """

    first: int
    last: int


class EventStream:
    """The events of one service, or of all, from the moment it is opened::

        async with EventStream.open(connection, "web") as events:
            async for event in events:
                ...

    Each event comes once and in order, over reconnects and server restarts. A reader that falls
    more than 10,000 events behind gets a `Gap` in their place, and goes on with the newest.
    """

    def __init__(self, connection: Connection, service: str | None, backlog: int) -> None:
        subjects = connection.subjects
        subject = subjects.all_events if service is None else subjects.events(service)
        self._connection = connection
        self._backlog = backlog
        self._waiting: deque[InstanceEvent | Gap] = deque()
        self._arrived = asyncio.Event()
        self._current = asyncio.Event()
        self.follower = Follower(
            connection, subjects.events_stream, self, start=Start.NEXT, subject=subject
        )

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, connection: Connection, service: str | None = None, *, backlog: int = BACKLOG
    ) -> AsyncIterator[EventStream]:
        """Start following; every event stored from now on will come.

        Raises NameRefused for a service that can have no subject, StoreUnsuitable where this
        user may not read the stream. Waits for a stream that does not exist yet.
        """
        stream = cls(connection, service, backlog)
        async with task_scope() as tasks:
            tasks.create_task(stream.follower.run(), name="events")
            await stream._current.wait()
            yield stream

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> InstanceEvent | Gap:
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        return self._waiting.popleft()

    # ── the Follower's sink ──────────────────────────────────────────────────────────────

    def begin(self) -> None:
        """Nothing: events go on where they stopped."""

    def take(self, message: Message, seq: int, time_ns: int) -> None:
        try:
            event = decode(InstanceEvent, message.data)
        except ProtocolError:
            self._connection.metrics.refuse("events", "malformed")
            return
        if event.service != last_token(message.subject):
            self._connection.metrics.refuse("events", "subject and payload disagree")
            return
        self._push(event, seq)

    def complete(self, last_seq: int) -> None:
        self._current.set()

    def lost(self) -> None:
        """Nothing to say: what was missed meanwhile comes with the next run."""

    def _push(self, event: InstanceEvent, seq: int) -> None:
        waiting = self._waiting
        if len(waiting) < self._backlog:
            waiting.append(event)
        elif isinstance(gap := waiting[-1], Gap):
            waiting[-1] = Gap(first=gap.first, last=seq)
        else:
            waiting.append(Gap(first=seq, last=seq))
        self._arrived.set()
