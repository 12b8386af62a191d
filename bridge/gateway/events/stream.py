"""Following what happens to instances, as an async iterator that never loses silently."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Iterable
from datetime import datetime
from typing import Final, Self

from msgspec import Struct

from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.jetstream.follower import Begin, Checkpoint, Follower, Reset, Start
from bridge.gateway.events.filter import EventFilter, Services, read_event
from bridge.protocol import InstanceEvent, InstanceState
from bridge.tasks import task_scope

BACKLOG: Final = 10_000  # events that wait for a slow reader before a gap opens


class Gap(Struct, frozen=True, kw_only=True):
    """Events that this reader was too slow for lie among the stream's sequences `first` to `last`.
    They are still in the stream.
    """

    first: int
    last: int


_Waiting = tuple[int, datetime | None, InstanceEvent | Gap | Reset]  # sequence, in which stream


class EventStream:
    """The events of one service, of several, or of all::

        async with EventStream.open(connection, "web", start=Start.FIRST) as events:
            async for event in events:
                ...

    Each event comes once and in order, over reconnects and server restarts. What is in the stream
    when reading begins, and what was stored during an outage, is read as fast as the reader takes
    it. A reader of live events that falls more than `backlog` behind gets a `Gap` in their place,
    and goes on with the newest. A `Reset` says that events are no longer kept, or that the stream
    is another one.
    """

    def __init__(
        self,
        connection: Connection,
        wanted: EventFilter,
        *,
        start: Begin = Start.NOW,
        backlog: int = BACKLOG,
        follow: bool = True,
    ) -> None:
        self._connection = connection
        self._wanted = wanted
        self._backlog = backlog
        self._follow = follow
        self._waiting: deque[_Waiting] = deque()
        self._last: tuple[int, datetime | None] | None = None
        self._arrived = asyncio.Event()
        self._begun = asyncio.Event()
        self._live = False
        self._held = False
        self._ended = False
        self.follower = Follower(
            connection,
            connection.subjects.events_stream,
            self,
            start=start,
            subjects=wanted.subjects(connection.subjects),
            on_reset=self._reset,
            once=not follow,
        )

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        connection: Connection,
        service: Services = None,
        *,
        start: Begin = Start.NOW,
        states: Iterable[InstanceState] | None = None,
        backlog: int = BACKLOG,
        follow: bool = True,
    ) -> AsyncIterator[EventStream]:
        """Read from `start` on: NOW, FIRST (of those kept), a stream sequence (the first to come),
        a time (of storing, by the server's clock; a naive one is taken for local), or a
        `Checkpoint`. `states` leaves out events that go to others. Without `follow` the iteration
        ends behind what was stored when it began.

        From NOW, every event stored from here on comes. Raises NameRefused for a service that can
        have no subject, StoreUnsuitable where this user may not read the stream. Waits for a stream
        that does not exist yet.
        """
        wanted = EventFilter.of(service, states)
        stream = cls(connection, wanted, start=start, backlog=backlog, follow=follow)
        async with task_scope() as tasks:
            tasks.create_task(stream.follower.run(), name="events")
            await stream._begun.wait()
            yield stream

    @property
    def position(self) -> int:
        """The stream sequence of what was handed out last, or, when nothing waits, of what was seen
        last: who starts at `position` + 1 misses nothing and gets nothing twice.
        """
        return self.checkpoint.position

    @property
    def checkpoint(self) -> Checkpoint:
        """`position`, and which stream that is in. As a `start` it tells, as no mere sequence can,
        a stream that was made anew and has grown beyond it.
        """
        position, created = self.follower.position, self.follower.created
        if self._waiting:
            seq, its, _ = self._waiting[0]
            position, created = self._last or (max(seq - 1, 0), its)
        assert created is not None  # known since before `open` returned
        return Checkpoint(position=position, created=created)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> InstanceEvent | Gap | Reset:
        while not self._waiting:
            if self._ended:
                raise StopAsyncIteration
            if self._held:
                self._held = False
                self.follower.release()
            self._arrived.clear()
            await self._arrived.wait()
        seq, created, item = self._waiting.popleft()
        self._last = seq, created
        return item

    # ── the Follower's sink ──────────────────────────────────────────────────────────────

    def begin(self) -> None:
        """Nothing: events go on where they stopped."""

    def take(self, message: Message, seq: int, time_ns: int) -> None:
        if self._ended:
            return
        self._begun.set()
        event = read_event(message, self._connection.metrics)
        if event is not None and self._wanted.takes(event):
            self._push(event, seq)

    def complete(self, last_seq: int) -> None:
        self._live = True
        self._ended = not self._follow
        self._begun.set()
        self._arrived.set()

    def lost(self) -> None:
        self._live = False  # what was missed meanwhile comes with the next run

    def _reset(self, reset: Reset) -> None:
        self._waiting.append((reset.next - 1, self.follower.created, reset))
        self._arrived.set()

    def _push(self, event: InstanceEvent, seq: int) -> None:
        waiting, created = self._waiting, self.follower.created
        if len(waiting) < self._backlog:
            waiting.append((seq, created, event))
        elif isinstance(gap := waiting[-1][2], Gap):
            waiting[-1] = seq, created, Gap(first=gap.first, last=seq)
        else:
            waiting.append((seq, created, Gap(first=seq, last=seq)))
        if not self._live and len(waiting) >= self._backlog:
            self._held = True  # it is all in the stream: go on when this has been read
            self.follower.hold()
        self._arrived.set()
