"""Plain nats-py at the same work: the floor that `bench` compares this package with.

It does what nats-py's documentation shows, and keeps no promise of this package: that makes it the
floor. As a program (``python -m bridge.bench.baseline``) it is an echo, in a process of its own as
a Box is. It reads its task as one line of JSON, and ends when its stdin ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

import msgspec
import nats
from msgspec import Struct
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, StorageType

from bridge.bench import child
from bridge.bus.core.connection import Connection
from bridge.bus.core.credentials import credentials
from bridge.bus.jetstream.api import jetstream
from bridge.bus.jetstream.publish import OutgoingMessage
from bridge.settings import NatsConfig

IN_FLIGHT: Final = 256  # publishes that await their acknowledgement at once
_TIMEOUT: Final = 30.0  # seconds for one answer
_PATIENCE: Final = 20.0  # seconds for the echo to start


@contextlib.asynccontextmanager
async def connected(settings: NatsConfig) -> AsyncIterator[Client]:
    """A client from `nats.connect`, open while the block runs."""
    client = await nats.connect(
        settings.urls,
        inbox_prefix=settings.inbox_prefix.encode(),
        allow_reconnect=False,
        **credentials(settings),
    )
    try:
        yield client
    finally:
        await client.close()


async def publish(
    client: Client, messages: Sequence[OutgoingMessage], in_flight: int = IN_FLIGHT
) -> None:
    """Store `messages`: `in_flight` tasks at a time await `js.publish`."""
    js, rest = client.jetstream(timeout=_TIMEOUT), iter(messages)

    async def work() -> None:
        for message in rest:
            headers: dict[str, Any] = dict(message.headers)
            await js.publish(message.subject, message.data, headers=headers)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(in_flight):
            tasks.create_task(work())


async def consume(client: Client, stream: str, count: int, take: Callable[[bytes], object]) -> None:
    """Call `take` with the data of the first `count` messages of `stream`, in nats-py's callback.

    The server pushes them to a plain subscription, which is the least work for nats-py.
    """
    done, left, inbox = asyncio.Event(), count, client.new_inbox()

    async def handle(message: Msg) -> None:
        nonlocal left
        take(message.data)
        left -= 1
        if not left:
            done.set()

    subscription = await client.subscribe(
        inbox, cb=handle, pending_msgs_limit=-1, pending_bytes_limit=-1
    )
    await client.jetstream().add_consumer(
        stream,
        ConsumerConfig(
            deliver_subject=inbox,
            deliver_policy=DeliverPolicy.ALL,
            ack_policy=AckPolicy.NONE,
            mem_storage=True,
            inactive_threshold=10.0,
        ),
    )
    await done.wait()
    await subscription.unsubscribe()


async def ask(client: Client, subject: str, data: bytes, times: int) -> list[float]:
    """Send `times` requests, one after the other; returns the seconds that each took."""
    took = []
    for _ in range(times):
        start = time.perf_counter()
        await client.request(subject, data, timeout=_TIMEOUT)
        took.append(time.perf_counter() - start)
    return took


async def create_bucket(client: Client, bucket: str) -> None:
    """Create a bucket in memory, for `watch_keys`; `remove_bucket` deletes it."""
    await client.jetstream().create_key_value(bucket=bucket, storage=StorageType.MEMORY)


async def watch_keys(client: Client, bucket: str, count: int) -> dict[str, bytes]:
    """All `count` keys of a bucket, from nats-py's `kv.watch`.

    They are counted, because the None that should mark the end comes too early.
    """
    values: dict[str, bytes] = {}
    store = await client.jetstream().key_value(bucket)
    watcher: Any = await store.watchall()
    try:
        while len(values) < count:
            entry = await watcher.updates(timeout=_TIMEOUT)
            if entry is not None:
                values[entry.key] = entry.value
    finally:
        await watcher.stop()
    return values


# ── the far end ──────────────────────────────────────────────────────────────────────────


class Echo(Struct, frozen=True, kw_only=True):
    """The task of an echo: answer each request on `subject` with `reply`. With a `bucket`, first
    write `value` there by compare-and-set.
    """

    nats: NatsConfig
    subject: str
    reply: str
    bucket: str = ""
    value: str = ""


@contextlib.asynccontextmanager
async def echoing(echo: Echo) -> AsyncIterator[None]:
    """Run an echo in a process of its own, ready when the block begins. Raises ServerNotStarted."""
    task, what = msgspec.json.encode(echo), "the echo that is measured against"
    async with child.running("bridge.bench.baseline", task, what=what, patience=_PATIENCE):
        yield


async def remove_bucket(connection: Connection, bucket: str) -> None:
    """Delete the bucket of an Echo."""
    await jetstream(connection).delete_key_value(bucket)


async def _serve(echo: Echo) -> None:
    async with connected(echo.nats) as client:
        handle = await _handler(client, echo)
        await client.subscribe(echo.subject, cb=handle)
        await client.flush()
        await child.serve_owner()


async def _handler(client: Client, echo: Echo) -> Any:
    reply, value = echo.reply.encode(), echo.value.encode()
    if not echo.bucket:

        async def answer(message: Msg) -> None:
            await message.respond(reply)

        return answer
    bucket = await client.jetstream().create_key_value(bucket=echo.bucket, history=64)
    revision = await bucket.put("web", value)

    async def write(message: Msg) -> None:
        nonlocal revision
        revision = await bucket.update("web", value, last=revision)
        await message.respond(reply)

    return write


if __name__ == "__main__":
    asyncio.run(_serve(msgspec.json.decode(sys.stdin.readline(), type=Echo)))
