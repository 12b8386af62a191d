"""How fast events are read: ``python -m tests.bench.events``.

Prints, for this machine and a nats-server of its own: a replay by `EventStream`, what a thousand
consumers of an `EventHub` cost, and a durable whose worker acknowledges each event, one by one and
sixteen at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

from bridge import Delivery, DurableEvents, EventHub, EventStream, Start
from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.gateway.events.hub import HubEvents
from bridge.tasks import task_scope
from tests.stored_events import note, outgoing, store_all
from tests.support import connect


async def store_events(connection: Connection, count: int) -> None:
    await store_all(connection, [outgoing(note(str(number))) for number in range(count)])


def report(what: str, events: int, seconds: float) -> None:
    print(f"{what}: {events} events in {seconds:.2f} s, {events / seconds:,.0f}/s")


async def replay(connection: Connection, count: int) -> None:
    start, read = time.perf_counter(), 0
    async with EventStream.open(connection, start=Start.FIRST, follow=False) as stream:
        async for _ in stream:
            read += 1
    assert read == count, read
    report("EventStream, from the first", count, time.perf_counter() - start)


async def fan_out(connection: Connection, consumers: int, count: int) -> None:
    async with EventHub.open(connection) as hub:

        async def consume(events: HubEvents) -> None:
            for _ in range(count):
                await anext(events)

        start, cpu = time.perf_counter(), time.process_time()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(consumers):
                tasks.create_task(consume(hub.subscribe()))
            await store_events(connection, count)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    report(f"EventHub, {consumers} consumers, each", count, wall)
    print(f"  {cpu / count / consumers * 1e6:.2f} µs of processor per event and consumer")


async def acknowledge(connection: Connection, count: int, workers: int) -> None:
    start, left = time.perf_counter(), count
    name = f"bench-{workers}"
    async with DurableEvents.open(connection, name, max_unacked=max(workers, 2)) as durable:
        done = asyncio.Event()

        async def work() -> None:
            nonlocal left
            while True:
                item = await anext(durable)
                assert isinstance(item, Delivery)
                await item.ack()
                left -= 1
                if not left:
                    done.set()

        async with task_scope() as tasks:
            for _ in range(workers):
                tasks.create_task(work())
            await done.wait()
    report(f"DurableEvents, {workers} at a time", count, time.perf_counter() - start)


async def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--events", type=int, default=50_000, help="to replay; default 50,000")
    count = options.parse_args().events
    with tempfile.TemporaryDirectory() as directory:
        async with EmbeddedServer(Path(directory)) as server, connect(server.url) as connection:
            await topology.ensure(connection)
            await store_events(connection, count)
            await replay(connection, count)
            await fan_out(connection, 1000, 1000)
            await acknowledge(connection, 5000, 1)
            await acknowledge(connection, 5000, 16)


if __name__ == "__main__":
    asyncio.run(main())
