"""Fleets of any size without a Box: what many Boxes would have registered and recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator

from nats.aio.client import Client

from bridge.bus.connection import Connection
from bridge.protocol import InstanceRegistration, encode, now
from bridge.subjects import BOX_HOST, MSG_TTL
from tests.support import eventually

SERVICES = 100
HOSTS = 200
_BURST = 2000  # messages between looks at how far the server has come


def registrations(count: int) -> Iterator[InstanceRegistration]:
    """`count` registrations, spread over a hundred services."""
    started = now()
    for number in range(count):
        service = f"service-{number % SERVICES:03}"
        yield InstanceRegistration(
            instance_id=f"{service}-{number:06x}",
            service=service,
            endpoint=f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}:8080",
            metadata={"zone": f"zone-{number % 3}", "version": "2.4.0"},
            started_at=started,
        )


def host_of(number: int) -> str:
    """The host on which the instance of that number runs."""
    return f"box-{number % HOSTS:03}"


async def register(connection: Connection, count: int, ttl: int = 600) -> None:
    """Store `count` registrations as living leases; all are there on return."""
    subjects = connection.subjects
    for number, item in enumerate(registrations(count)):
        connection.publish(
            subjects.register(item.service, item.instance_id),
            encode(item),
            headers={BOX_HOST: host_of(number), MSG_TTL: str(ttl)},
        )
        if number % _BURST == _BURST - 1:
            await connection.flush(timeout=30)
    await stored(connection, subjects.registry_stream, count)


async def fill_bucket(
    connection: Connection, bucket: str, items: Iterable[tuple[str, bytes]]
) -> int:
    """Put `items` into a bucket; returns how many."""
    count = 0
    for count, (key, value) in enumerate(items, start=1):
        connection.publish(f"$KV.{bucket}.{key}", value)
        if count % _BURST == 0:
            await connection.flush(timeout=30)
    await stored(connection, f"KV_{bucket}", count)
    return count


async def stored(connection: Connection, stream: str, count: int) -> None:
    """Return when the stream holds so many messages."""

    async def there() -> bool:
        state = (await connection.jetstream.stream_info(stream)).state
        return state.messages >= count

    await connection.flush(timeout=30)
    await eventually(there, within=60, what=f"{count} messages in {stream}")


async def watch_bucket(client: Client, bucket: str, count: int) -> dict[str, bytes]:
    """What nats-py's own kv.watch gives of a bucket with `count` keys.

    It counts them: the None that should mark the end comes too early.
    """
    found: dict[str, bytes] = {}
    store = await client.jetstream().key_value(bucket)
    watcher = await store.watchall()
    try:
        async with asyncio.timeout(60):
            while len(found) < count:
                entry = await watcher.updates()  # type: ignore[no-untyped-call]
                if entry is not None:
                    found[entry.key] = entry.value or b""
    finally:
        await watcher.stop()  # type: ignore[no-untyped-call]
    return found
