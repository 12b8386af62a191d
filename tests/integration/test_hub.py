"""Many local consumers on one subscription: each sees everything, none delays another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from bridge import EventHub, Gap, InstanceEvent, InstanceState, Reset
from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.api import jetstream
from bridge.errors import ConfigError
from bridge.gateway.events import filter as event_filter
from bridge.gateway.events.hub import HubEvents
from bridge.protocol import decode
from bridge.tasks import task_scope
from tests.stored_events import tell, texts
from tests.support import connect, eventually

S = InstanceState
Told = InstanceEvent | Gap | Reset


@pytest.fixture
async def connection(server: EmbeddedServer) -> AsyncIterator[Connection]:
    async with connect(server.url) as connection:
        await topology.ensure(connection)
        yield connection


async def read(events: HubEvents, count: int) -> list[Told]:
    async with asyncio.timeout(90):
        return [await anext(events) for _ in range(count)]


async def test_a_thousand_consumers_each_see_every_event_in_order(connection: Connection) -> None:
    count, expected = 1000, [str(number) for number in range(40)]
    async with EventHub.open(connection) as hub:
        seen: list[list[Told]] = []

        async def consume(events: HubEvents) -> None:
            seen.append(await read(events, len(expected)))

        async with task_scope() as tasks:
            for _ in range(count):
                tasks.create_task(consume(hub.subscribe()))
            await tell(connection, *expected[:30])  # at once, and then one by one
            for text in expected[30:]:
                await tell(connection, text)
            await eventually(lambda: len(seen) == count, within=90, what="all have seen all")
        assert all(texts(mine) == expected for mine in seen)
        listeners = [x for x in connection._listeners._all if x.subject != f"{connection._inbox}*"]
        assert len(listeners) == 1


async def test_each_message_is_decoded_once(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = 0

    def count(*arguments: object) -> object:
        nonlocal decoded
        decoded += 1
        return decode(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(event_filter, "decode", count)
    async with EventHub.open(connection) as hub:
        consumers = [hub.subscribe() for _ in range(10)]
        await tell(connection, "a", "b")
        for events in consumers:
            assert texts(await read(events, 2)) == ["a", "b"]
    assert decoded == 2


async def test_a_slow_consumer_gets_a_gap_and_delays_no_other(connection: Connection) -> None:
    async with EventHub.open(connection, backlog=8) as hub:
        slow, slower, quick = hub.subscribe(), hub.subscribe(backlog=3), hub.subscribe()
        for number in range(1, 16):
            await tell(connection, str(number))
            assert texts(await read(quick, 1)) == [str(number)]
        near = hub.subscribe(backlog=3)
        await tell(connection, *map(str, range(16, 21)))
        assert texts(await read(quick, 5)) == ["16", "17", "18", "19", "20"]
        assert (await read(slow, 1)) == [Gap(first=1, last=12)]
        assert texts(await read(slow, 8)) == [str(number) for number in range(13, 21)]
        assert (await read(slower, 1)) == [Gap(first=1, last=17)]
        assert texts(await read(slower, 3)) == ["18", "19", "20"]
        assert (await read(near, 1)) == [Gap(first=16, last=17)]
        assert texts(await read(near, 3)) == ["18", "19", "20"]
        await tell(connection, "21")
        for events in (slow, slower, near, quick):
            assert texts(await read(events, 1)) == ["21"]


async def test_consumers_filter_and_begin_where_they_subscribe(connection: Connection) -> None:
    async with EventHub.open(connection, ["web", "api"]) as hub:
        web, failed = hub.subscribe("web"), hub.subscribe(states=[S.FAILED])
        await tell(connection, "w1")
        await tell(connection, "d1", service="db", state=S.FAILED)
        await tell(connection, "a1", service="api", state=S.FAILED)
        assert texts(await read(failed, 1)) == ["a1"]
        late = hub.subscribe()
        await tell(connection, "w2", state=S.FAILED)
        assert texts(await read(web, 2)) == ["w1", "w2"]
        assert texts(await read(failed, 1)) == ["w2"]
        assert texts(await read(late, 1)) == ["w2"]
        with pytest.raises(ConfigError, match="does not follow db"):
            hub.subscribe(["web", "db"])


@pytest.mark.slow
async def test_server_kills_lose_nothing_for_any_consumer(
    connection: Connection, server: EmbeddedServer
) -> None:
    async with EventHub.open(connection) as hub:
        consumers = [hub.subscribe() for _ in range(3)]
        for round_ in range(3):
            await tell(connection, *(f"{round_}.{number}" for number in range(20)))
            await server.kill()
            await server.start()
        await tell(connection, "end")
        expected = [f"{round_}.{number}" for round_ in range(3) for number in range(20)]
        for events in consumers:
            assert texts(await read(events, 61)) == [*expected, "end"]


@pytest.mark.slow
async def test_a_re_created_stream_is_reported_to_all_consumers_and_to_slow_ones_too(
    connection: Connection,
) -> None:
    async with EventHub.open(connection, backlog=5) as hub:
        quick, slow = hub.subscribe(), hub.subscribe()
        await tell(connection, "a", "b")
        assert texts(await read(quick, 2)) == ["a", "b"]
        await jetstream(connection).delete_stream("BOX_EVENTS")
        await topology.ensure(connection)
        for number in range(10):
            await tell(connection, str(number))
            got = texts(await read(quick, 2 if number == 0 else 1))
            assert got == (["Reset"] if number == 0 else []) + [str(number)]
        assert await read(slow, 2) == [
            Reset(reason="recreated", expected=1, next=1),
            Gap(first=1, last=5),
        ]
        assert texts(await read(slow, 5)) == ["5", "6", "7", "8", "9"]


async def test_a_consumer_that_waits_ends_when_the_hub_is_closed(
    connection: Connection,
) -> None:
    waiting = asyncio.Event()

    async def consume(events: HubEvents) -> list[Told]:
        waiting.set()
        return [event async for event in events]

    async with asyncio.timeout(60), task_scope() as tasks:
        async with EventHub.open(connection) as hub:
            consumer = tasks.create_task(consume(hub.subscribe()))
            await waiting.wait()
        assert await consumer == []


async def test_iterations_end_with_the_hub_or_their_own_block(connection: Connection) -> None:
    async with EventHub.open(connection) as hub:
        async with hub.subscribe() as ended:
            pass
        last = hub.subscribe()
        await tell(connection, "last")
        await eventually(lambda: hub.head == 1)
        with pytest.raises(StopAsyncIteration):
            await anext(ended)
    async with asyncio.timeout(60):
        assert texts([event async for event in last]) == ["last"]
