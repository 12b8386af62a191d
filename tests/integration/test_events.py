"""Following events: each one once, in order, whatever happens to the server or the reader."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bridge import EventStream, Gap, InstanceEvent, InstanceState, Reset, ScaleClient
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.api import jetstream
from bridge.bus.jetstream.publish import store
from bridge.errors import NameRefused
from bridge.protocol import encode
from tests.boxes import boxed
from tests.stored_events import tell, texts
from tests.support import ask, connect

S = InstanceState
Told = InstanceEvent | Gap | Reset


async def read(stream: EventStream, count: int) -> list[Told]:
    async with asyncio.timeout(15):
        return [await anext(stream) for _ in range(count)]


async def test_every_event_from_the_opening_on_comes_once_and_in_order(
    server: EmbeddedServer,
) -> None:
    async with connect(server.url) as connection:
        await topology.ensure(connection)
        await tell(connection, "before")
        async with EventStream.open(connection) as stream:
            for number in range(50):
                await tell(connection, str(number))
            assert texts(await read(stream, 50)) == [str(number) for number in range(50)]


async def test_one_service_can_be_followed(server: EmbeddedServer) -> None:
    async with connect(server.url) as connection:
        await topology.ensure(connection)
        async with EventStream.open(connection, "api") as stream:
            await tell(connection, "web 1")
            await tell(connection, "api 1", service="api")
            await tell(connection, "web 2")
            await tell(connection, "api 2", service="api")
            assert texts(await read(stream, 2)) == ["api 1", "api 2"]
        with pytest.raises(NameRefused):
            async with EventStream.open(connection, "a.b"):
                pass


async def test_a_box_is_followed_through_a_whole_life(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path) as (gateway, _):
        client = ScaleClient(gateway)
        async with client.events("web") as stream:
            await ask(gateway, "web", 1)
            events = await read(stream, 2)
            await ask(gateway, "web", 0)
            events += await read(stream, 3)
    states = [event.to_state for event in events if isinstance(event, InstanceEvent)]
    assert states == [S.BOOTING, S.READY, S.DRAINING, S.STOPPING, S.STOPPED]


async def test_server_kills_lose_nothing_and_double_nothing(server: EmbeddedServer) -> None:
    async with connect(server.url) as connection, connect(server.url) as reader:
        await topology.ensure(connection)
        async with EventStream.open(reader) as stream:
            for round_ in range(3):
                for number in range(20):
                    await tell(connection, f"{round_}.{number}")
                await server.kill()
                await server.start()
            await tell(connection, "end")
            expected = [f"{round_}.{number}" for round_ in range(3) for number in range(20)]
            assert texts(await read(stream, 61)) == [*expected, "end"]


async def test_a_stream_opened_before_the_fleet_waits_for_it(server: EmbeddedServer) -> None:
    async with connect(server.url) as connection:

        async def follow() -> list[str]:
            async with EventStream.open(connection) as stream:
                opened.set()
                return texts(await read(stream, 1))

        opened = asyncio.Event()
        following = asyncio.ensure_future(follow())
        await topology.ensure(connection)
        async with asyncio.timeout(60):
            await opened.wait()
        await tell(connection, "first")
        assert await following == ["first"]


async def test_a_slow_reader_gets_a_gap_with_the_sequences_that_it_missed(
    server: EmbeddedServer,
) -> None:
    async with connect(server.url) as connection:
        await topology.ensure(connection)
        async with EventStream.open(connection, backlog=5) as stream:
            for number in range(1, 21):
                await tell(connection, str(number))
            await connection.flush()
            events = await read(stream, 5)
            assert texts(events) == ["1", "2", "3", "4", "5"]
            [gap] = await read(stream, 1)
            assert gap == Gap(first=6, last=20)
            await tell(connection, "21")
            assert texts(await read(stream, 1)) == ["21"]


async def test_events_that_lie_about_their_service_or_are_none_are_counted_and_left_out(
    server: EmbeddedServer,
) -> None:
    async with connect(server.url) as connection:
        await topology.ensure(connection)
        async with EventStream.open(connection) as stream:
            liar = InstanceEvent.transition("web-1", "web", S.READY, S.READY)
            await store(connection, "box.events.api", encode(liar))
            await store(connection, "box.events.api", b"nonsense")
            await tell(connection, "good")
            assert texts(await read(stream, 1)) == ["good"]
        assert connection.metrics.refusals() == {
            "events: subject and payload disagree": 1,
            "events: malformed": 1,
        }


@pytest.mark.slow
async def test_a_re_created_stream_is_followed_from_its_start(
    server: EmbeddedServer,
) -> None:
    async with connect(server.url) as connection:
        await topology.ensure(connection)
        async with EventStream.open(connection) as stream:
            for number in range(5):
                await tell(connection, str(number))
            await read(stream, 5)
            await jetstream(connection).delete_stream("BOX_EVENTS")
            await topology.ensure(connection)
            await tell(connection, "anew")
            assert texts(await read(stream, 2)) == ["Reset", "anew"]
            # Made anew, and longer than before by the time that the reader looks.
            await jetstream(connection).delete_stream("BOX_EVENTS")
            await topology.ensure(connection)
            for number in range(3):
                await tell(connection, f"again {number}")
            expected = ["Reset", *(f"again {number}" for number in range(3))]
            assert texts(await read(stream, 4)) == expected
