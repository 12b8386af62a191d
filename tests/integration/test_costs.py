"""What one message costs, counted: tasks, turns of the loop, calls and memory.

Counts, unlike times, are the same on every machine: one that grows is a hot path that has lost what
made it fast (docs/explanation/performance.md). A bound is what was counted when it was set, and a
tenth.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from bridge import EventStream, Start
from bridge.bench.fleets import registrations
from bridge.bench.messages import make_events, outgoing
from bridge.box.journal.journal import Journal
from bridge.box.journal.outbox import Outbox
from bridge.bus.core.connection import Connection
from bridge.bus.core.nats_client import GuardedClient
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.follower import Follower, _Run
from bridge.bus.jetstream.publisher import Publisher
from bridge.bus.service.endpoint import Endpoint, Reply
from bridge.bus.service.responder import Responder
from bridge.gateway.events.filter import EventFilter
from bridge.gateway.routes.feed import RouteFeed
from bridge.gateway.routes.state import RouteState
from bridge.observe import Metrics
from bridge.protocol import ScaleConfig, ScaleRequest, decode, encode, now
from bridge.settings import NatsConfig
from bridge.subjects import BOX_HOST, MSG_TTL
from bridge.tasks import task_scope
from tests.integration.test_responder import DESCRIPTION
from tests.stored_events import note, store_all
from tests.support import calls, connect
from tests.unit.box.journal.test_journal import entry

COUNT = 300


class Counts:
    """Tasks made and callbacks scheduled while a block ran."""

    def __init__(self) -> None:
        self.tasks: list[str] = []
        self.callbacks = 0


@contextmanager
def counted() -> Iterator[Counts]:
    loop: Any = asyncio.get_running_loop()
    counts, factory, call_soon = Counts(), loop.get_task_factory(), loop.call_soon

    def make(loop: Any, work: Any, **settings: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(work, loop=loop, **settings)
        counts.tasks.append(task.get_name())
        return task

    def soon(*arguments: Any, **settings: Any) -> asyncio.Handle:
        counts.callbacks += 1
        handle: asyncio.Handle = call_soon(*arguments, **settings)
        return handle

    loop.set_task_factory(make)
    loop.call_soon = soon
    try:
        yield counts
    finally:
        loop.set_task_factory(factory)
        del loop.call_soon


def blocks(work: Callable[[], object]) -> int:
    """How many more blocks of memory are in use once `work` is done."""
    gc.collect()
    gc.disable()
    try:
        before = sys.getallocatedblocks()
        work()
        return sys.getallocatedblocks() - before
    finally:
        gc.enable()


# ── reading ──────────────────────────────────────────────────────────────────────────────


class Wire:
    """A consumer's messages as bytes, as they come from the socket, fed to what follows it."""

    def __init__(self, connection: Connection, follower: Follower) -> None:
        self._stream = follower.stream
        self._run = _Run(connection, follower._take, follower._complete, asyncio.Event())
        self._client = GuardedClient(lambda kind: None)
        self._client.handlers[1] = self._run.handle

    def frames(self, messages: Iterable[tuple[str, bytes, Mapping[str, str]]]) -> bytes:
        """Subjects, payloads and headers as a server pushes them, the next ones of the consumer."""
        frames = []
        for number, message in enumerate(messages, start=self._run._consumer_seq + 1):
            subject, data, headers = message
            reply = f"$JS.ACK.{self._stream}.{self._run.name}.1.{number}.{number}.{number}.0"
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            head = f"NATS/1.0\r\n{lines}\r\n".encode()
            line = f"HMSG {subject} 1 {reply} {len(head)} {len(head) + len(data)}\r\n".encode()
            frames.append(line + head + data + b"\r\n")
        return b"".join(frames)

    def take(self, data: bytes) -> None:
        self._client._frames.feed(data)


class Events:
    """An EventStream whose consumer is fed."""

    def __init__(self) -> None:
        connection = Connection(NatsConfig(), "test", Metrics())
        self.stream = EventStream(connection, EventFilter.of(None, None))
        self.wire = Wire(connection, self.stream.follower)
        self._messages = outgoing(connection.subjects, COUNT)

    def frames(self) -> bytes:
        """The next `COUNT` events."""
        return self.wire.frames((each.subject, each.data, each.headers) for each in self._messages)


async def test_an_event_takes_no_more_calls_from_the_socket_to_its_reader() -> None:
    events = Events()
    events.wire.take(events.frames())  # caches
    data = events.frames()
    took = calls(lambda: events.wire.take(data))
    assert len(events.stream._waiting) == 2 * COUNT
    assert took <= 40 * COUNT


async def test_an_event_that_waits_for_its_reader_holds_no_more_memory() -> None:
    events = Events()
    events.wire.take(events.frames())
    data = events.frames()
    held = blocks(lambda: events.wire.take(data))
    assert len(events.stream._waiting) == 2 * COUNT
    assert held <= 7.7 * COUNT


async def test_a_registration_takes_no_more_calls_from_the_socket_to_its_route() -> None:
    """Of a snapshot, as a gateway gets it that joins late."""
    connection, book = Connection(NatsConfig(), "test", Metrics()), RouteState(30)
    book.record_changes = False  # nobody reads changes yet
    feed = RouteFeed(connection, book, None, 30, lambda: None)
    wire = Wire(connection, feed.registry.follower)
    data = wire.frames(
        (
            connection.subjects.register(item.service, item.instance_id),
            encode(item),
            {BOX_HOST: "box-a", MSG_TTL: "30"},
        )
        for item in registrations(COUNT)
    )
    feed.registry.begin()

    def join() -> None:
        wire.take(data)
        feed.registry.complete(COUNT)

    took = calls(join)
    assert len(book.routes) == COUNT
    assert connection.metrics.refusals() == {}
    # 12 of them (14 on Python 3.13) bound the routes of a registrant and of a service.
    assert took <= 62 * COUNT


def test_a_request_is_read_once_if_it_is_what_serde_writes() -> None:
    data = encode(ScaleRequest(service="web", replicas=3, config=ScaleConfig(env={"A": "1"})))
    decode(ScaleRequest, data)  # caches
    assert calls(lambda: [decode(ScaleRequest, data) for _ in range(COUNT)]) <= 12 * COUNT


async def test_events_are_read_without_a_task_for_any(server: EmbeddedServer) -> None:
    async def read(connection: Connection) -> int:
        with counted() as counts:
            async with EventStream.open(connection, start=Start.FIRST, follow=False) as events:
                found = [event async for event in events]
        assert len(found) >= COUNT
        return len(counts.tasks)

    async with connect(server.url) as connection:
        await topology.ensure(connection)
        await store_all(connection, outgoing(connection.subjects, COUNT))
        few = await read(connection)
        await store_all(connection, outgoing(connection.subjects, 3 * COUNT))
        assert await read(connection) <= few


# ── publishing ───────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def sending(server: EmbeddedServer, path: Path) -> AsyncIterator[tuple[Journal, Outbox]]:
    async with connect(server.url) as connection, Journal.open(path) as journal:
        await topology.ensure(connection)

        async def restore() -> None:
            raise AssertionError("nothing is missing")

        publisher = Publisher(connection, "BOX_EVENTS", 60.0, now, restore)
        outbox = Outbox(journal, publisher, connection.subjects, "box-a", connection.metrics)
        async with task_scope() as tasks:
            tasks.create_task(outbox.run())
            yield journal, outbox


@pytest.mark.parametrize("at_once", [1, 5, 100])
async def test_events_are_published_without_a_task_for_any(
    server: EmbeddedServer, tmp_path: Path, at_once: int
) -> None:
    async with sending(server, tmp_path / "journal.db") as (journal, outbox):
        journal.put(entry(), note("first"))
        await outbox.flush()
        with counted() as counts:
            for _ in range(10):
                for life, event in make_events(at_once):
                    journal.put(entry(life.info.id), event)
                await outbox.flush()
        assert counts.tasks == []


# ── asking ───────────────────────────────────────────────────────────────────────────────


async def test_a_request_that_is_answered_at_once_takes_three_turns_and_no_task(
    server: EmbeddedServer,
) -> None:
    async def never(message: object) -> Reply:
        raise AssertionError("it is answered at once")

    endpoint = Endpoint(
        name="scale",
        subject="box.scale",
        queue="box",
        handle=never,
        refuse=lambda refusal: Reply(data=str(refusal).encode()),
        at_once=lambda message: Reply(data=message.data),
    )
    async with connect(server.url) as box, connect(server.url) as gateway, task_scope() as tasks:
        responder = Responder(box, DESCRIPTION, [endpoint])
        tasks.create_task(responder.run())
        await responder.listening()
        body = encode(note("x"))
        with counted() as counts:
            for _ in range(COUNT):
                assert (await gateway.request("box.scale", body)).data == body
        assert counts.tasks == []
        # Who waits is woken, and each side ends the turn in which it wrote.
        assert counts.callbacks <= 3.3 * COUNT
