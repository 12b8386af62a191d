"""Reading what a stream holds once, from its first message, or from a time, to its last."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.jetstream.api import jetstream, jetstream_errors
from bridge.bus.jetstream.follower import Follower
from bridge.bus.jetstream.start_position import Begin, Start
from bridge.errors import NoReply
from bridge.tasks import task_scope

IDLE: Final = 60.0  # seconds; an outage is over by then, or somebody works on it
_REPORT: Final = 10.0  # seconds between two reports of the progress


async def read(
    connection: Connection,
    stream: str,
    subject: str,
    take: Callable[[Message], None],
    *,
    start: Begin = Start.FIRST,
    idle: float | None = IDLE,
    timeout: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Give every message that `stream` holds on `subject`, from `start` on, to `take`, in order.

    After an outage reading continues where it stopped; only if the stream was re-created can `take`
    get a message twice. However long a history is, it is read: NoReply is raised if no message
    comes for `idle` seconds (None: never), or after `timeout` seconds (None: never). `progress` is
    called every 10 s with the number of messages so far.
    """
    count = 0

    def count_and_take(message: Message, seq: int, time_ns: int) -> None:
        nonlocal count
        count += 1
        take(message)

    follower = Follower(
        connection, stream, count_and_take, start=start, subjects=[subject], once=True
    )

    try:
        async with asyncio.timeout(timeout), task_scope() as tasks:
            tasks.create_task(follower.run(), name=f"replay-{stream}")
            await _watch(follower.live, stream, lambda: count, idle, progress)
    except TimeoutError as exc:
        assert timeout is not None
        raise NoReply(stream, timeout) from exc


async def _watch(
    live: asyncio.Event,
    stream: str,
    count: Callable[[], int],
    idle: float | None,
    progress: Callable[[int], None] | None,
) -> None:
    """Return when everything was read. Raises NoReply if `count` stays the same for `idle` s."""
    loop = asyncio.get_running_loop()
    pause = _REPORT if idle is None else min(_REPORT, idle / 4)
    before, moved_at = count(), loop.time()
    reported_at = moved_at
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await live.wait()
            return
        at = loop.time()
        if count() != before:
            before, moved_at = count(), at
        elif idle is not None and at - moved_at >= idle:
            raise NoReply(stream, idle)
        if progress is not None and at - reported_at >= _REPORT:
            reported_at = at
            progress(count())


async def holds(connection: Connection, stream: str, subject: str) -> bool:
    """Whether `stream` holds a message on `subject`. Raises BusError."""
    with jetstream_errors(stream):
        info = await jetstream(connection).stream_info(stream, subjects_filter=subject)
    return bool(info.state.subjects)
