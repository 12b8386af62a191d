"""The rows of events: from a Box's journal into the stream, and out of it again."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Final

from bridge.bench import baseline
from bridge.bench.row import Row, Sides, Site, at_least
from bridge.box.journal.entry import JournalEntry
from bridge.box.journal.journal import Journal
from bridge.box.journal.outbox import Outbox
from bridge.box.state import lifecycle
from bridge.box.state.lifecycle import Life
from bridge.bus.core.connection import Connection
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.publish import OutgoingMessage, store_batch
from bridge.bus.jetstream.publisher import LIMIT, Publisher
from bridge.bus.jetstream.start_position import Start
from bridge.errors import BenchFailed
from bridge.gateway.events.stream import EventStream
from bridge.ids import new_id
from bridge.protocol import InstanceEvent, ScaleConfig, decode, encode, now
from bridge.settings import ServiceConfig
from bridge.subjects import BOX_HOST, BOX_SEQ, MSG_ID, Subjects
from bridge.tasks import task_scope

_PUBLISHED: Final = 20_000
_PUBLISHED_PLAIN: Final = 5_000  # by nats-py, in about the same time
_CONSUMED: Final = 50_000
_INSTANCES: Final = 100
_BURST: Final = 500  # events that are journaled before other tasks run
_WINDOW: Final = 3600.0
_HOST: Final = "bench"
_SAYS: Final = "this many letters make the whole event three hundred bytes long; " * 2


# ── events ───────────────────────────────────────────────────────────────────────────────


def make_events(count: int) -> Iterator[tuple[Life, InstanceEvent]]:
    """`count` events of 300 bytes, of a hundred instances in turn, each with its life."""
    lives = [lifecycle.begin(new_id("web"), "web", now()) for _ in range(_INSTANCES)]
    for number in range(count):
        place = number % _INSTANCES
        lives[place], event = lifecycle.note(lives[place], now(), _SAYS)
        yield lives[place], event


def outgoing(subjects: Subjects, count: int) -> list[OutgoingMessage]:
    """`count` such events as messages, as an outbox sends them."""
    return [
        OutgoingMessage(
            subject=subjects.events(event.service),
            data=encode(event),
            headers={
                MSG_ID: f"{event.instance_id}.{life.seq}",
                BOX_SEQ: str(life.seq),
                BOX_HOST: _HOST,
            },
            key=event.instance_id,
            at=event.timestamp,
        )
        for life, event in make_events(count)
    ]


async def fill(connection: Connection, messages: list[OutgoingMessage]) -> None:
    """Store `messages` in their stream."""
    for first in range(0, len(messages), LIMIT):
        await store_batch(connection, messages[first : first + LIMIT], timeout=30.0)


# ── durable publish ──────────────────────────────────────────────────────────────────────


@contextlib.asynccontextmanager
async def _publishing(site: Site) -> AsyncIterator[Sides]:
    count, plain_count = site.times(_PUBLISHED), site.times(_PUBLISHED_PLAIN)
    async with site.connect() as connection, baseline.connected(site.nats) as client:
        await topology.ensure(connection)
        async with (
            Journal.open(site.directory / "journal.db") as journal,
            task_scope() as tasks,
        ):
            publisher = Publisher(
                connection,
                connection.subjects.events_stream,
                _WINDOW,
                now,
                lambda: topology.ensure(connection),
            )
            subjects, metrics = connection.subjects, connection.metrics
            outbox = Outbox(journal, publisher, subjects, _HOST, metrics)
            tasks.create_task(outbox.run(), name="outbox")

            async def ours() -> float:
                return await _journaled(journal, outbox, list(make_events(count)))

            async def floor() -> float:
                messages = outgoing(subjects, plain_count)
                start = time.perf_counter()
                await baseline.publish(client, messages)
                return plain_count / (time.perf_counter() - start)

            yield Sides(ours=ours, floor=floor)


async def _journaled(
    journal: Journal, outbox: Outbox, events: list[tuple[Life, InstanceEvent]]
) -> float:
    """Events per second from `Journal.put` to the acknowledgement, each with its instance."""
    service = ServiceConfig(command=["true"])
    start = time.perf_counter()
    for number, (life, event) in enumerate(events):
        entry = JournalEntry(
            slot=number % _INSTANCES,
            config="",
            service=service,
            overrides=ScaleConfig(),
            life=life,
        )
        journal.put(entry, event)
        if number % _BURST == 0:
            await asyncio.sleep(0)
    await outbox.flush()
    return len(events) / (time.perf_counter() - start)


# ── consume ──────────────────────────────────────────────────────────────────────────────


@contextlib.asynccontextmanager
async def consuming(site: Site) -> AsyncIterator[tuple[Connection, int]]:
    """A connection to a stream with events, and their number."""
    count = site.times(_CONSUMED)
    async with site.connect() as connection:
        await topology.ensure(connection)
        await fill(connection, outgoing(connection.subjects, count))
        yield connection, count


async def read_all(connection: Connection, count: int) -> float:
    """Events per second through our async iterator, decoded."""
    start, read = time.perf_counter(), 0
    async with EventStream.open(connection, start=Start.FIRST, follow=False) as events:
        async for _ in events:
            read += 1
    _expect(read, count)
    return count / (time.perf_counter() - start)


@contextlib.asynccontextmanager
async def _reading(site: Site) -> AsyncIterator[Sides]:
    async with consuming(site) as (connection, count), baseline.connected(site.nats) as client:
        stream = connection.subjects.events_stream

        async def floor() -> float:
            start = time.perf_counter()
            await baseline.consume(client, stream, count, lambda data: decode(InstanceEvent, data))
            return count / (time.perf_counter() - start)

        yield Sides(ours=lambda: read_all(connection, count), floor=floor)


def _expect(count: int, expected: int) -> None:
    if count != expected:
        raise BenchFailed(f"{count} events were read of {expected}")


ROWS: Final = (
    Row(
        name="durable-publish",
        what="events of 300 bytes from the Box's journal to the stream's acknowledgement",
        against="nats-py, 256 js.publish in flight",
        unit="events/s",
        goal=at_least(4.0),
        prepare=_publishing,
    ),
    Row(
        name="consume",
        what="stored events through the async iterator, checked and decoded",
        against="nats-py's callback, decoding",
        unit="events/s",
        goal=at_least(0.9),
        prepare=_reading,
    ),
)
