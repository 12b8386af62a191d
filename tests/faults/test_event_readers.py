"""Readers of events over faults of the server: each continues, and learns what it missed."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from bridge import Delivery, DurableEvents, EventHub, EventStream, Reset
from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.api import jetstream
from bridge.gateway.events.hub import HubEvents
from tests.stored_events import tell
from tests.support import connect, eventually


class Readers:
    """One reader of each kind on a connection of their own."""

    def __init__(self, stream: EventStream, local: HubEvents, durable: DurableEvents) -> None:
        self.all: tuple[EventStream | HubEvents | DurableEvents, ...] = (stream, local, durable)

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, url: str) -> AsyncIterator[Readers]:
        async with (
            connect(url) as connection,
            EventStream.open(connection) as stream,
            EventHub.open(connection) as hub,
            hub.subscribe() as local,
            DurableEvents.open(connection, "mail", ack_wait=1.0) as durable,
        ):
            yield cls(stream, local, durable)

    async def see(self, *expected: str | Reset) -> None:
        """Each reader gets these next; deliveries are acknowledged."""
        async with asyncio.timeout(20):
            for reader in self.all:
                assert [await self.next(reader) for _ in expected] == [*expected], reader

    async def next(self, reader: EventStream | HubEvents | DurableEvents) -> object:
        item: object = await anext(reader)
        if isinstance(item, Delivery):
            await item.ack()
            return item.event.message
        return getattr(item, "message", item)


@pytest.fixture
async def connection(server: EmbeddedServer) -> AsyncIterator[Connection]:
    async with connect(server.url) as connection:
        await topology.ensure(connection)
        yield connection


async def test_a_lost_store_is_reported_to_every_reader(
    connection: Connection, server: EmbeddedServer
) -> None:
    async with Readers.running(server.url) as readers:
        await tell(connection, "a", "b")
        await readers.see("a", "b")
        await server.kill()
        shutil.rmtree(server.directory / "jetstream")
        await server.start()
        await tell(connection, "anew", "goes on")
        recreated = Reset(reason="recreated", expected=3, next=1)
        async with asyncio.timeout(20):
            for reader in readers.all:
                told = await readers.next(reader)
                assert isinstance(told, Reset)
                if isinstance(reader, DurableEvents):  # it looks every two seconds how far it is
                    told = replace(told, expected=3)
                assert told == recreated
        await readers.see("anew", "goes on")


@pytest.mark.slow
@pytest.mark.parametrize("pause", [0.0, 3.0], ids=["at once", "after a while"])
async def test_a_deleted_stream_that_is_made_again_is_reported_to_every_reader(
    connection: Connection, server: EmbeddedServer, pause: float
) -> None:
    async with Readers.running(server.url) as readers:
        await tell(connection, "a", "b")
        await readers.see("a", "b")
        await jetstream(connection).delete_stream("BOX_EVENTS")
        await asyncio.sleep(pause)  # beyond the silence that a reader takes for a loss
        await topology.ensure(connection)
        await tell(connection, "anew", "goes on")
        async with asyncio.timeout(20):
            for reader in readers.all:
                reset = await readers.next(reader)
                assert isinstance(reset, Reset)
                assert (reset.reason, reset.next) == ("recreated", 1)
        await readers.see("anew", "goes on")


async def test_an_older_store_is_reported_to_every_reader(
    connection: Connection, server: EmbeddedServer, tmp_path: Path
) -> None:
    async with Readers.running(server.url) as readers:
        await tell(connection, "a", "b")
        await readers.see("a", "b")
        store, copy = server.directory / "jetstream", tmp_path / "copy"
        await server.kill()
        shutil.copytree(store, copy)
        await server.start()
        await tell(connection, "c", "d")
        await readers.see("c", "d")
        await server.kill()
        shutil.rmtree(store)
        shutil.copytree(copy, store)
        await server.start()
        await tell(connection, "e")
        *live, durable = readers.all
        for reader in live:
            assert [await readers.next(reader) for _ in range(4)] == [
                Reset(reason="recreated", expected=5, next=1),
                *("a", "b", "e"),
            ]
        reset = await readers.next(durable)
        assert isinstance(reset, Reset)
        assert (reset.reason, reset.expected) == ("recreated", 5)
        # On from where the older store has it, as far as that was on disk; "a" and "b" are known.
        assert reset.next in (1, 2, 3)
        assert await readers.next(durable) == "e"


@pytest.mark.slow
async def test_a_frozen_server_delays_readers_and_costs_nothing(
    connection: Connection, server: EmbeddedServer
) -> None:
    async with Readers.running(server.url) as readers:
        await tell(connection, "a")
        await readers.see("a")
        server.pause()
        await eventually(lambda: not connection.connected, what="it is noticed")
        server.resume()
        await tell(connection, "b", "c")
        await readers.see("b", "c")
