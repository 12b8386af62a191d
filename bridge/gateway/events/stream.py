"""The events of instances as an async iterator, which reports every event that it misses."""

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
from bridge.bus.jetstream.follower import Follower
from bridge.bus.jetstream.start_position import Begin, Checkpoint, Reset, Start
from bridge.gateway.events.filter import EventFilter, OnRefused, Services, read_event
from bridge.protocol import InstanceEvent, InstanceState
from bridge.tasks import task_scope

BACKLOG: Final = 10_000  # events that wait for a slow reader before a Gap replaces them


class Gap(Struct, frozen=True, kw_only=True):
    """Events that this reader was too slow for: their stream sequences lie in `first` to `last`.

    They are still in the stream.
    """

    first: int
    last: int


_Item = tuple[int, datetime | None, InstanceEvent | Gap | Reset]
"""A stream sequence, the creation time of that stream, and what the reader gets."""


class EventStream:
    """The events of one service, of several, or of all::

        async with EventStream.open(connection, "web", start=Start.FIRST) as events:
            async for event in events:
                ...

    Each event comes once and in order, across reconnects and server restarts. Events that are
    stored when reading begins, or during an outage, are read as fast as the reader takes them. A
    reader of live events that falls more than `backlog` behind gets a `Gap` in their place, and
    continues with the newest. A `Reset` reports that the stream no longer keeps some events, or was
    re-created.
    """

    def __init__(
        self,
        connection: Connection,
        wanted: EventFilter,
        *,
        start: Begin = Start.NOW,
        backlog: int = BACKLOG,
        follow: bool = True,
        on_refused: OnRefused | None = None,
    ) -> None:
        self._connection = connection
        self._wanted = wanted
        self._backlog = backlog
        self._follow = follow
        self._on_refused = on_refused
        self._waiting: deque[_Item] = deque()
        self._last: tuple[int, datetime | None] | None = None
        self._arrival = asyncio.Event()
        self._ready = asyncio.Event()
        self._on_hold = False
        self._ended = False
        self.follower = Follower(
            connection,
            connection.subjects.events_stream,
            self._take,
            start=start,
            subjects=wanted.subjects(connection.subjects),
            on_complete=self._complete,
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
        on_refused: OnRefused | None = None,
    ) -> AsyncIterator[EventStream]:
        """Read from `start` on: NOW, FIRST (the oldest event that is kept), the stream sequence of
        the first event to read, a time of storing (by the server's clock; a time without an offset
        is local), or a `Checkpoint`. Only events that go to `states` come. Without `follow` the
        iteration ends after the events that were stored when it began.

        A message that is no event is counted and skipped; `on_refused` gets its subject and the
        reason.

        From NOW, every event comes that is stored after the block began. Raises NameRefused for an
        invalid service name, StoreUnsuitable if this NATS user may not read the stream. Waits for a
        stream that does not exist yet.
        """
        wanted = EventFilter.of(service, states)
        stream = cls(
            connection,
            wanted,
            start=start,
            backlog=backlog,
            follow=follow,
            on_refused=on_refused,
        )
        async with task_scope() as tasks:
            tasks.create_task(stream.follower.run(), name="events")
            await stream._ready.wait()
            yield stream

    @property
    def position(self) -> int:
        """The stream sequence of the last item returned; if no item waits, of the last one read. A
        reader that starts at `position` + 1 misses no event and gets none twice.
        """
        return self.checkpoint.position

    @property
    def checkpoint(self) -> Checkpoint:
        """`position` and its stream. Unlike a sequence, as a `start` it detects a stream that was
        re-created and has grown beyond `position`.
        """
        position, created = self.follower.position, self.follower.created
        if self._waiting:
            seq, stream, _ = self._waiting[0]
            position, created = self._last or (max(seq - 1, 0), stream)
        assert created is not None  # set before `open` returns
        return Checkpoint(position=position, created=created)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> InstanceEvent | Gap | Reset:
        while not self._waiting:
            if self._ended:
                raise StopAsyncIteration
            if self._on_hold:
                self._on_hold = False
                self.follower.release()
            self._arrival.clear()
            await self._arrival.wait()
        seq, created, item = self._waiting.popleft()
        self._last = seq, created
        return item

    # ── called by the Follower ───────────────────────────────────────────────────────────

    def _take(self, message: Message, seq: int, time_ns: int) -> None:
        if self._ended:
            return
        self._ready.set()
        event = read_event(message, self._connection.metrics, self._on_refused)
        if event is not None and self._wanted.takes(event):
            self._push(event, seq)

    def _complete(self, last_seq: int) -> None:
        self._ended = not self._follow
        self._ready.set()
        self._arrival.set()

    def _reset(self, reset: Reset) -> None:
        self._waiting.append((reset.next - 1, self.follower.created, reset))
        self._arrival.set()

    def _push(self, event: InstanceEvent, seq: int) -> None:
        waiting, created = self._waiting, self.follower.created
        if len(waiting) < self._backlog:
            waiting.append((seq, created, event))
        elif isinstance(gap := waiting[-1][2], Gap):
            waiting[-1] = seq, created, Gap(first=gap.first, last=seq)
        else:
            waiting.append((seq, created, Gap(first=seq, last=seq)))
        if len(waiting) >= self._backlog and not self.follower.live.is_set():
            self._on_hold = True  # the rest stays in the stream until the reader has caught up
            self.follower.hold()
        self._arrival.set()
