"""Reading a stream's past once, from its first message to what is its last by then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.jetstream.follower import Follower, Start
from bridge.errors import NoReply
from bridge.tasks import task_scope

Take = Callable[[Message], None]


async def read(
    connection: Connection, stream: str, subject: str, take: Take, *, timeout: float = 60.0
) -> None:
    """Give every message that `stream` holds on `subject` to `take`, in order.

    After an outage the reading goes on where it was; only from a stream that was made anew may
    `take` get a message again. Raises NoReply when the end was not reached within `timeout` s.
    """
    past = _Collector(take)
    follower = Follower(connection, stream, past, start=Start.FIRST, subjects=[subject], once=True)
    try:
        async with asyncio.timeout(timeout), task_scope() as tasks:
            tasks.create_task(follower.run(), name=f"history-{stream}")
            await past.end.wait()
    except TimeoutError as exc:
        raise NoReply(stream, timeout) from exc


class _Collector:
    """The Follower's sink."""

    def __init__(self, take: Take) -> None:
        self._take = take
        self.end = asyncio.Event()

    def begin(self) -> None:
        pass

    def take(self, message: Message, seq: int, time_ns: int) -> None:
        self._take(message)

    def complete(self, last_seq: int) -> None:
        self.end.set()

    def lost(self) -> None:
        pass
