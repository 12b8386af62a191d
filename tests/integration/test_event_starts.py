"""Where reading events begins, how it is resumed, and what is told of a stream that changed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import msgspec
import pytest

from bridge import Checkpoint, EventStream, Gap, InstanceEvent, InstanceState, Reset, Start
from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import follower, replay, topology
from bridge.bus.jetstream.api import jetstream
from bridge.bus.jetstream.start_position import Begin
from bridge.errors import NameRefused, NoReply
from bridge.protocol import now
from tests.stored_events import age_out, note, outgoing, store_all, tell, texts
from tests.support import connect, eventually

S = InstanceState
Told = InstanceEvent | Gap | Reset


@pytest.fixture
async def connection(server: EmbeddedServer) -> AsyncIterator[Connection]:
    async with connect(server.url) as connection:
        await topology.ensure(connection)
        yield connection


async def read(stream: EventStream, count: int) -> list[Told]:
    async with asyncio.timeout(15):
        return [await anext(stream) for _ in range(count)]


async def stored(connection: Connection, start: Begin) -> list[Told]:
    """All that is stored from `start` on."""
    async with asyncio.timeout(15), EventStream.open(connection, start=start, follow=False) as told:
        return [item async for item in told]


async def test_reading_begins_at_the_first_at_a_sequence_or_at_a_time(
    connection: Connection,
) -> None:
    await tell(connection, "a", "b")
    await asyncio.sleep(0.01)  # for a time that lies between
    middle = now()
    await tell(connection, "c", "d")
    assert texts(await stored(connection, Start.FIRST)) == ["a", "b", "c", "d"]
    assert texts(await stored(connection, 2)) == ["b", "c", "d"]
    assert texts(await stored(connection, middle)) == ["c", "d"]
    assert texts(await stored(connection, 5)) == []
    assert texts(await stored(connection, Start.NOW)) == []
    async with EventStream.open(connection, start=4) as stream:
        await tell(connection, "e")
        assert texts(await read(stream, 2)) == ["d", "e"]


async def test_a_reader_of_the_stored_events_of_a_service_does_not_wait_for_more(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "_HEARTBEAT", 60.0)  # by which others learn that this was all
    await tell(connection, "a", "b")
    middle = now()
    await tell(connection, "another's", service="api")
    taken: list[Message] = []
    await replay.read(connection, "BOX_EVENTS", "box.events.web", taken.append, timeout=15)
    assert len(taken) == 2
    for service, start, told in (
        ("web", Start.FIRST, ["a", "b"]),
        ("web", 2, ["b"]),
        ("web", middle, []),
        ("jobs", Start.FIRST, []),
    ):
        async with (
            asyncio.timeout(15),
            EventStream.open(connection, service, start=start, follow=False) as stream,
        ):
            assert texts([item async for item in stream]) == told


async def test_a_history_that_takes_long_to_read_is_read_to_its_end(
    connection: Connection,
) -> None:
    await tell(connection, *map(str, range(60)))
    taken: list[Message] = []

    def take(message: Message) -> None:
        time.sleep(0.02)  # a second in all
        taken.append(message)

    await replay.read(connection, "BOX_EVENTS", "box.events.web", take, idle=0.5)
    assert len(taken) == 60


async def test_reading_a_history_gives_up_when_nothing_comes(connection: Connection) -> None:
    with pytest.raises(NoReply):
        await replay.read(connection, "NO_STREAM", "box.events.web", lambda _: None, idle=0.3)


async def test_a_history_is_read_from_a_time_on(connection: Connection) -> None:
    await tell(connection, "a", "b")
    await asyncio.sleep(0.01)  # for a time that lies between
    middle = now()
    await tell(connection, "c")
    taken: list[Message] = []
    await replay.read(
        connection, "BOX_EVENTS", "box.events.web", taken.append, start=middle, idle=15
    )
    assert len(taken) == 1


async def test_a_resumed_reader_continues_behind_the_last_one_exactly(
    connection: Connection,
) -> None:
    expected = [str(number) for number in range(30)]
    await tell(connection, *expected)
    got: list[str] = []
    position = 0
    for _ in range(3):
        async with EventStream.open(connection, start=position + 1) as stream:
            got += texts(await read(stream, 10))
            position = stream.position
    assert got == expected
    async with EventStream.open(connection, start=position + 1) as stream:
        await tell(connection, "next")
        assert texts(await read(stream, 1)) == ["next"]


async def test_the_position_passes_what_was_filtered_out(connection: Connection) -> None:
    await tell(connection, "w1")
    await tell(connection, "a1", service="api", state=S.FAILED)
    await tell(connection, "w2")
    async with EventStream.open(connection, "api", start=Start.FIRST) as stream:
        assert texts(await read(stream, 1)) == ["a1"]
        await eventually(lambda: stream.position == 3, what="the end was seen")
    async with EventStream.open(connection, start=1, states=[S.FAILED]) as stream:
        assert texts(await read(stream, 1)) == ["a1"]
        await eventually(lambda: stream.position == 3)


async def test_services_and_states_are_filtered(connection: Connection) -> None:
    for service in ("web", "api", "db"):
        await tell(connection, f"{service} fine", service=service)
        await tell(connection, f"{service} failed", service=service, state=S.FAILED)
    async with EventStream.open(
        connection, ["web", "db"], start=Start.FIRST, states=[S.FAILED]
    ) as stream:
        assert texts(await read(stream, 2)) == ["web failed", "db failed"]
    with pytest.raises(NameRefused):
        async with EventStream.open(connection, []):
            pass


async def test_a_slow_reader_of_the_past_gets_all_of_it_from_a_bounded_backlog(
    connection: Connection,
) -> None:
    expected = [str(number) for number in range(500)]
    await tell(connection, *expected)
    most = 0
    got: list[str] = []
    async with EventStream.open(connection, start=Start.FIRST, backlog=64, follow=False) as stream:
        async for item in stream:
            most = max(most, len(stream._waiting))
            got += texts([item])
            if len(got) % 50 == 0:
                await connection.flush()  # what is on its way arrives
    assert got == expected
    assert most < 64


async def test_what_a_slow_reader_was_cut_off_from_comes_without_a_gap(
    connection: Connection,
) -> None:
    async with EventStream.open(connection, backlog=10) as stream:
        expected = [str(number) for number in range(200)]
        stream.follower.hold()  # as by an outage
        await tell(connection, *expected)
        stream.follower.release()
        assert texts(await read(stream, 200)) == expected


async def test_a_trimmed_stream_is_reported_when_reading_begins_below_it(
    connection: Connection,
) -> None:
    await tell(connection, *"abc")
    await age_out(connection)
    await tell(connection, "d")
    trimmed = Reset(reason="trimmed", expected=2, next=4)
    first, *rest = await stored(connection, 2)
    assert first == trimmed
    assert texts(rest) == ["d"]
    assert texts(await stored(connection, Start.FIRST)) == ["d"]


async def test_events_that_aged_out_while_the_reader_was_cut_off_are_reported(
    connection: Connection,
) -> None:
    async with EventStream.open(connection) as stream:
        await tell(connection, "a")
        assert texts(await read(stream, 1)) == ["a"]
        stream.follower.hold()  # as by an outage
        await tell(connection, "b", "c")
        await age_out(connection)
        await tell(connection, "d")
        stream.follower.release()
        assert await read(stream, 1) == [Reset(reason="trimmed", expected=2, next=4)]
        assert texts(await read(stream, 1)) == ["d"]


@pytest.mark.slow
async def test_nothing_is_reported_missing_when_events_of_other_services_aged_out(
    connection: Connection,
) -> None:
    async with EventStream.open(connection, "web") as stream:
        await tell(connection, "a", "b", service="api")
        await eventually(lambda: stream.position == 2, what="the server says how far it looked")
        await age_out(connection)
        stream.follower.hold()
        stream.follower.release()
        await tell(connection, "w")
        assert texts(await read(stream, 1)) == ["w"]


async def test_a_re_created_stream_is_reported_to_a_reader_that_resumes(
    connection: Connection,
) -> None:
    await tell(connection, *"abc")
    async with EventStream.open(connection, start=Start.FIRST) as stream:
        await read(stream, 2)
        checkpoint = msgspec.json.decode(msgspec.json.encode(stream.checkpoint), type=Checkpoint)
    assert checkpoint.position == 2
    assert texts(await stored(connection, checkpoint)) == ["c"]
    await jetstream(connection).delete_stream("BOX_EVENTS")
    await topology.ensure(connection)
    await tell(connection, "anew")
    recreated = Reset(reason="recreated", expected=4, next=1)
    first, *rest = await stored(connection, 4)  # by its last sequence
    assert first == recreated
    assert texts(rest) == ["anew"]
    await store_all(connection, [outgoing(note(str(number))) for number in range(5)])
    first, *rest = await stored(connection, checkpoint)  # by when it was made
    assert first == Reset(reason="recreated", expected=3, next=1)
    assert texts(rest) == ["anew", *map(str, range(5))]
