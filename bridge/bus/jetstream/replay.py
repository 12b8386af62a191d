"""Reading what a stream holds once, from its first message to its last."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.jetstream.follower import Follower, Start
from bridge.errors import NoReply
from bridge.tasks import task_scope


async def read(
    connection: Connection,
    stream: str,
    subject: str,
    take: Callable[[Message], None],
    *,
    timeout: float = 60.0,
) -> None:
    """Give every message that `stream` holds on `subject` to `take`, in order.

    After an outage reading continues where it stopped; only if the stream was re-created can `take`
    get a message twice. Raises NoReply if the end is not reached within `timeout` seconds.
    """
    follower = Follower(
        connection,
        stream,
        lambda message, seq, time_ns: take(message),
        start=Start.FIRST,
        subjects=[subject],
        once=True,
    )
    try:
        async with asyncio.timeout(timeout), task_scope() as tasks:
            tasks.create_task(follower.run(), name=f"replay-{stream}")
            await follower.live.wait()
    except TimeoutError as exc:
        raise NoReply(stream, timeout) from exc
