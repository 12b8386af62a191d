"""Events under a durable name: each is handled, whoever is killed, deleted or slow."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from bridge import Checkpoint, Delivery, DurableEvents, EventStream, InstanceState, Reset, Start
from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.api import jetstream
from bridge.bus.jetstream.publish import store
from bridge.errors import BusError, ConfigError, DurableMismatch, NameRefused
from bridge.protocol import encode, now
from bridge.tasks import task_scope
from tests.stored_events import age_out, note, outgoing, store_all, tell
from tests.support import connect, eventually

S = InstanceState

_SEQ = "1000000"  # the number of no other event: a small one may be that of a later event


@pytest.fixture
async def connection(server: EmbeddedServer) -> AsyncIterator[Connection]:
    async with connect(server.url) as connection:
        await topology.ensure(connection)
        yield connection


async def take(durable: DurableEvents) -> Delivery:
    """The next delivery."""
    async with asyncio.timeout(60):
        item = await anext(durable)
    assert isinstance(item, Delivery), item
    return item


async def handle(durable: DurableEvents, count: int) -> list[str]:
    """What the next events say, each acknowledged."""
    said = []
    for _ in range(count):
        delivery = await take(durable)
        said.append(delivery.event.message)
        await delivery.ack()
    return said


async def unhandled(connection: Connection, name: str = "mail") -> int:
    """How many events the durable has yet to see handled."""
    info = await jetstream(connection).consumer_info("BOX_EVENTS", name)
    return (info.num_pending or 0) + (info.num_ack_pending or 0)


async def test_the_next_run_goes_on_behind_what_was_acknowledged(connection: Connection) -> None:
    await tell(connection, *"abcd")
    async with DurableEvents.open(connection, "mail") as durable:
        assert await handle(durable, 2) == ["a", "b"]
        assert (await take(durable)).event.message == "c"  # in hand when the worker ends
    async with DurableEvents.open(connection, "mail", ack_wait=1.0) as durable:
        assert sorted(await handle(durable, 2)) == ["c", "d"]
    assert await unhandled(connection) == 0


async def test_a_delivery_has_its_host_and_position(connection: Connection) -> None:
    await store(connection, "box.events.api", encode(note("plain", "api")))
    message = outgoing(note("whole"), 7)
    await store(
        connection,
        message.subject,
        message.data,
        headers={**message.headers, "traceparent": "00-1"},
    )
    async with DurableEvents.open(connection, "mail") as durable:
        plain, whole = await take(durable), await take(durable)
    assert (plain.seq, plain.box_seq, plain.host, plain.attempt) == (1, 0, "", 1)
    assert (whole.seq, whole.box_seq, whole.host, whole.attempt) == (2, 7, "box-a", 1)
    assert whole.headers["traceparent"] == "00-1"
    assert abs((whole.time - whole.event.timestamp).total_seconds()) < 30


async def test_what_is_given_back_comes_again_and_what_is_dropped_does_not(
    connection: Connection,
) -> None:
    await tell(connection, "poor", "poison")
    async with DurableEvents.open(connection, "mail", max_unacked=1) as durable:
        await (await take(durable)).retry(0.01)
        seen = [await take(durable)]
        if seen[0].event.message == "poor":
            await seen[0].ack()
            await (await take(durable)).drop("not\r\nwanted")
        else:
            await seen[0].drop("not\r\nwanted")
            again = await take(durable)
            assert (again.event.message, again.attempt) == ("poor", 2)
            await again.ack()
        await tell(connection, "end")
        assert await handle(durable, 1) == ["end"]
    assert await unhandled(connection) == 0


@pytest.mark.slow
async def test_an_event_without_an_answer_in_time_comes_again_unless_it_is_being_worked_on(
    connection: Connection,
) -> None:
    await tell(connection, "left", "kept")
    async with DurableEvents.open(connection, "mail", ack_wait=1.0, max_unacked=2) as durable:
        left, kept = await take(durable), await take(durable)
        async with task_scope() as tasks:

            async def work() -> None:
                while True:
                    await kept.working()
                    await asyncio.sleep(0.1)

            tasks.create_task(work())
            second, third = await take(durable), await take(durable)
        assert [(it.seq, it.attempt) for it in (second, third)] == [(left.seq, 2), (left.seq, 3)]
        assert durable._worker.room() == 0  # both are in hand
        await third.ack()
        await kept.ack()
    assert await unhandled(connection) == 0


async def test_a_worker_that_takes_nothing_holds_each_event_once(connection: Connection) -> None:
    await tell(connection, "a", "b")
    async with DurableEvents.open(connection, "mail", ack_wait=0.3) as durable:

        async def delivered() -> int:
            info = await jetstream(connection).consumer_info("BOX_EVENTS", "mail")
            return info.delivered.consumer_seq if info.delivered else 0

        async def often() -> bool:
            return await delivered() >= 8

        await eventually(often, what="both have come four times")
        assert len(durable._worker.waiting) <= 2
        assert sorted(await handle(durable, 2)) == ["a", "b"]


async def test_what_is_dropped_is_not_handed_out_though_it_came_again_meanwhile(
    connection: Connection,
) -> None:
    await tell(connection, "late")
    async with DurableEvents.open(connection, "mail", ack_wait=0.5) as durable:
        late = await take(durable)
        await eventually(lambda: durable._worker.waiting, what="it has come again")
        await late.drop("too late")
        await tell(connection, "end")
        assert await handle(durable, 1) == ["end"]


@pytest.mark.slow
async def test_an_event_is_handed_out_once_though_it_is_stored_or_delivered_twice(
    connection: Connection,
) -> None:
    event = outgoing(note("once"), int(_SEQ))
    async with DurableEvents.open(connection, "mail", ack_wait=4.0) as durable:
        await store_all(connection, [event])
        first = await take(durable)
        # As after the stream has forgotten the event's id.
        await store(connection, event.subject, event.data, headers={"Box-Seq": _SEQ})
        await eventually(lambda: len(durable._worker.waiting) == 1, what="the second one waits")
        await first.ack()
        await store(connection, event.subject, event.data, headers={"Box-Seq": _SEQ})
        # Handled, but the acknowledgement is lost.
        await tell(connection, "unheard", "end")
        unheard = await take(durable)
        durable._worker.remember(unheard)
        assert await handle(durable, 1) == ["end"]

        async def all_handled() -> bool:
            return await unhandled(connection) == 0

        await eventually(all_handled, what="what comes again is acknowledged in passing")
        assert not durable._worker.waiting


async def test_workers_of_one_name_share_the_events(
    connection: Connection, server: EmbeddedServer
) -> None:
    async with (
        connect(server.url) as other,
        DurableEvents.open(connection, "mail", max_unacked=1) as one,
        DurableEvents.open(other, "mail", max_unacked=1) as two,
    ):
        parts: tuple[list[str], list[str]] = ([], [])

        async def work(durable: DurableEvents, part: list[str]) -> None:
            async for item in durable:
                assert isinstance(item, Delivery)
                part.append(item.event.message)
                await item.ack()

        async with task_scope() as tasks:
            tasks.create_task(work(one, parts[0]))
            tasks.create_task(work(two, parts[1]))
            await tell(connection, *map(str, range(100)))
            await eventually(lambda: len(parts[0]) + len(parts[1]) >= 100, what="all are handled")
        assert all(parts)
        assert sorted(map(int, parts[0] + parts[1])) == list(range(100))


async def test_a_worker_that_ends_leaves_what_it_has_not_touched_to_the_others_at_once(
    connection: Connection,
) -> None:
    await tell(connection, *"abc")
    async with DurableEvents.open(connection, "mail", ack_wait=60.0) as ending:
        await eventually(lambda: len(ending._worker.waiting) == 3, what="it has them all")
    async with DurableEvents.open(connection, "mail", ack_wait=60.0) as durable:
        assert sorted(await handle(durable, 3)) == ["a", "b", "c"]


async def test_services_are_filtered_by_the_server_and_states_here(connection: Connection) -> None:
    await tell(connection, "w1")
    await tell(connection, "a1", service="api", state=S.FAILED)
    await tell(connection, "d1", service="db", state=S.FAILED)
    await tell(connection, "w2", state=S.FAILED)
    async with DurableEvents.open(connection, "mail", ["web", "api"], states=[S.FAILED]) as durable:
        assert await handle(durable, 2) == ["a1", "w2"]
    assert await unhandled(connection) == 0


async def test_a_new_durable_begins_at_its_start(connection: Connection) -> None:
    await tell(connection, *"abc")
    async with DurableEvents.open(connection, "third", start=3) as durable:
        assert await handle(durable, 1) == ["c"]
    async with EventStream.open(connection) as stream:
        created = stream.checkpoint.created
    for checkpoint, expected in (
        (Checkpoint(position=2, created=created), ["c"]),
        (Checkpoint(position=2, created=now()), ["Reset", "a", "b", "c"]),  # of another stream
    ):
        name = f"after-{len(expected)}"
        async with DurableEvents.open(connection, name, start=checkpoint, follow=False) as durable:
            got = []
            async for item in durable:
                if isinstance(item, Delivery):
                    await item.ack()
                got.append(item.event.message if isinstance(item, Delivery) else "Reset")
            assert got == expected
    async with DurableEvents.open(connection, "new", start=Start.NOW) as durable:
        await tell(connection, "d")
        assert await handle(durable, 1) == ["d"]


async def test_poison_is_terminated_and_counted(connection: Connection) -> None:
    await store(connection, "box.events.web", b"nonsense")
    await store(connection, "box.events.web", encode(note("liar", "api")))
    await tell(connection, "good")
    async with DurableEvents.open(connection, "mail", ack_wait=1.0) as durable:
        assert await handle(durable, 1) == ["good"]
    assert await unhandled(connection) == 0
    assert connection.metrics.refusals() == {
        "events: malformed": 1,
        "events: subject and payload disagree": 1,
    }


async def test_a_durable_that_is_another_ones_is_refused(connection: Connection) -> None:
    async with DurableEvents.open(connection, "mail", "web"):
        pass
    with pytest.raises(DurableMismatch, match=r"reads box\.events\.web, not box\.events\.api"):
        async with DurableEvents.open(connection, "mail", "api"):
            pass
    async with DurableEvents.open(connection, "mail", "web", ack_wait=7.0):
        info = await jetstream(connection).consumer_info("BOX_EVENTS", "mail")
        assert info.config.ack_wait == 7.0
    for wrong in ("a.b", "", "*"):
        with pytest.raises(NameRefused):
            async with DurableEvents.open(connection, wrong):
                pass
    with pytest.raises(ConfigError):
        async with DurableEvents.open(connection, "mail", max_unacked=0):
            pass


@pytest.mark.slow
async def test_server_kills_lose_nothing(connection: Connection, server: EmbeddedServer) -> None:
    async with DurableEvents.open(connection, "mail", ack_wait=1.0) as durable:
        handled: list[str] = []

        async def work() -> None:
            async for item in durable:
                assert isinstance(item, Delivery)
                with contextlib.suppress(BusError):  # then it is acknowledged when it comes again
                    await item.ack()
                handled.append(item.event.message)

        async with task_scope() as tasks:
            tasks.create_task(work())
            for round_ in range(3):
                await tell(connection, *(f"{round_}.{number}" for number in range(20)))
                await server.kill()
                await server.start()
            await tell(connection, "end")
            expected = [f"{round_}.{number}" for round_ in range(3) for number in range(20)]
            await eventually(lambda: len(set(handled)) == 61, what="all are handled")
        assert sorted(handled) == sorted([*expected, "end"])


async def test_a_durable_that_is_deleted_goes_on_where_all_had_come_to(
    connection: Connection,
) -> None:
    await tell(connection, *"abc")
    async with DurableEvents.open(connection, "mail", ack_wait=1.0) as durable:
        assert await handle(durable, 3) == ["a", "b", "c"]
        await jetstream(connection).delete_consumer("BOX_EVENTS", "mail")
        await tell(connection, "d")
        assert await handle(durable, 1) == ["d"]


async def test_a_re_created_stream_is_reported_and_read_from_its_start(
    connection: Connection,
) -> None:
    await tell(connection, *"abc")
    async with DurableEvents.open(connection, "mail") as durable:
        assert await handle(durable, 3) == ["a", "b", "c"]
        await jetstream(connection).delete_stream("BOX_EVENTS")
        await topology.ensure(connection)
        await tell(connection, "anew")
        async with asyncio.timeout(60):
            reset = await anext(durable)
        assert isinstance(reset, Reset)
        assert (reset.reason, reset.next) == ("recreated", 1)
        assert await handle(durable, 1) == ["anew"]


async def test_events_that_aged_out_before_they_were_handled_are_reported(
    connection: Connection,
) -> None:
    await tell(connection, *"abcd")
    async with DurableEvents.open(connection, "mail", max_unacked=1) as durable:
        assert await handle(durable, 1) == ["a"]
    await age_out(connection)
    await tell(connection, "e")
    async with DurableEvents.open(connection, "mail") as durable:
        async with asyncio.timeout(60):
            reset = await anext(durable)
        assert isinstance(reset, Reset)
        assert (reset.reason, reset.next) == ("trimmed", 5)
        assert reset.expected in (2, 3)  # "b" may have been on its way to the worker that ended
        assert await handle(durable, 1) == ["e"]
