"""A bucket as a view: complete, current, and right after whatever happened to it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec import Struct

from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Handler, Message
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.api import jetstream
from bridge.bus.jetstream.kv_view import KeyValueView, Record
from bridge.bus.jetstream.publish import store
from bridge.errors import Conflict, NoReply, ProtocolError
from bridge.tasks import task_scope
from tests.support import connect, eventually

BUCKET = "box_slots"


class Value(Struct):
    n: int


class Watched:
    """A view and what it told."""

    def __init__(self, connection: Connection) -> None:
        self.told: list[tuple[str, int | None, int | None]] = []
        self.live: list[bool] = []
        self.records = KeyValueView(
            connection, BUCKET, Value, on_change=self._changed, on_live=self.live.append
        )

    def _changed(self, key: str, old: Value | None, new: Value | None) -> None:
        self.told.append((key, old.n if old else None, new.n if new else None))

    def values(self) -> dict[str, int]:
        return {key: record.value.n for key, record in self.records.items()}


@asynccontextmanager
async def views(server: EmbeddedServer, count: int = 1) -> AsyncIterator[Any]:
    """`count` views, each on a connection of its own, all live."""
    async with connect(server.url) as one, connect(server.url) as other, task_scope() as tasks:
        await topology.ensure(one)
        made = [Watched((one, other)[number % 2]) for number in range(count)]
        for view in made:
            tasks.create_task(view.records.run())
        for view in made:
            await view.records.wait_live()
        yield made


async def test_an_empty_bucket_is_complete_at_once(server: EmbeddedServer) -> None:
    async with views(server) as [view]:
        assert (view.values(), view.records.seq) == ({}, 0)
        assert view.live == [True]


async def test_what_is_written_is_in_the_own_view_at_once_and_soon_in_others(
    server: EmbeddedServer,
) -> None:
    async with views(server, 2) as [mine, other]:
        revision = await mine.records.create("web.1", Value(1))
        assert mine.values() == {"web.1": 1}
        await other.records.wait_for(revision)
        assert other.values() == {"web.1": 1}
        revision = await other.records.update("web.1", Value(2), revision)
        await mine.records.wait_for(revision)
        await mine.records.delete("web.1", revision)
        assert mine.values() == {}
        assert mine.records.was_deleted("web.1")
        await other.records.wait_for(revision + 1)
        assert other.told == [("web.1", None, 1), ("web.1", 1, 2), ("web.1", 2, None)]
        assert mine.told == other.told


async def test_a_late_view_has_everything_that_was_there(server: EmbeddedServer) -> None:
    async with views(server) as [first]:
        for number in range(300):
            await first.records.create(f"web.{number}", Value(number))
        async with views(server) as [late]:
            assert late.values() == {f"web.{number}": number for number in range(300)}
            assert late.records.seq == 300


async def test_only_one_of_many_racers_creates_a_key(server: EmbeddedServer) -> None:
    async with views(server, 6) as racers:

        async def race(number: int) -> bool:
            try:
                await racers[number].records.create("web.1", Value(number))
            except Conflict:
                return False
            return True

        won = await asyncio.gather(*(race(number) for number in range(6)))
        assert sum(won) == 1
        for racer in racers:
            await racer.records.wait_for(1)
            assert racer.values() == {"web.1": won.index(True)}


async def test_a_deleted_key_can_be_created_again(server: EmbeddedServer) -> None:
    async with views(server) as [view]:
        for number in range(3):
            revision = await view.records.create("web.1", Value(number))
            await view.records.delete("web.1", revision)
        assert view.records.revision("web.1") == 6


async def test_an_update_of_an_older_revision_is_a_conflict(server: EmbeddedServer) -> None:
    async with views(server) as [view]:
        revision = await view.records.create("web.1", Value(1))
        await view.records.update("web.1", Value(2), revision)
        with pytest.raises(Conflict) as lost:
            await view.records.update("web.1", Value(3), revision)
        assert lost.value.last == revision + 1
        assert view.values() == {"web.1": 2}


async def test_compare_and_set_notices_a_write_to_any_key_of_the_bucket(
    server: EmbeddedServer,
) -> None:
    async with views(server, 2) as [mine, other]:
        seq = mine.records.seq
        assert await other.records.compare_and_set("a", Value(1), seq) == seq + 1
        with pytest.raises(Conflict):
            await mine.records.compare_and_set("b", Value(2), seq)
        await mine.records.wait_for(seq + 1)
        assert await mine.records.compare_and_set("b", Value(2), mine.records.seq) == seq + 2
        assert mine.records.seq == seq + 2


async def test_an_unreadable_record_keeps_its_key_taken(server: EmbeddedServer) -> None:
    async with views(server) as [view], connect(server.url) as vandal:
        await view.records.create("web.1", Value(1))
        await store(vandal, "$KV.box_slots.web.1", b"nonsense")
        await store(vandal, "$KV.box_slots.web.2", b'{"n":"x"}')
        await eventually(lambda: len(view.records.unreadable) == 2)
        assert view.values() == {}
        assert dict(view.records.unreadable) == {"web.1": 2, "web.2": 3}
        assert view.told[-2:] == [("web.1", 1, None), ("web.2", None, None)]
        refusals = view.records._connection.metrics.refusals()
        assert refusals == {"box_slots: unreadable record": 2}


async def test_a_record_that_was_unreadable_before_the_view_began_is_reported(
    server: EmbeddedServer,
) -> None:
    async with connect(server.url) as vandal:
        await topology.ensure(vandal)
        await store(vandal, "$KV.box_slots.web.1", b"nonsense")
        async with views(server) as [view]:
            assert view.told == [("web.1", None, None)]
            assert "web.1" in view.records.unreadable


async def test_a_value_that_the_check_refuses_is_unreadable(server: EmbeddedServer) -> None:
    def check(key: str, value: Value) -> None:
        if value.n > 9:
            raise ProtocolError("Value", "n", f"too much for {key}")

    async with connect(server.url) as connection, task_scope() as tasks:
        await topology.ensure(connection)
        records = KeyValueView(connection, BUCKET, Value, check=check)
        tasks.create_task(records.run())
        await store(connection, "$KV.box_slots.web.1", b'{"n":9}')
        await store(connection, "$KV.box_slots.web.2", b'{"n":10}')
        await eventually(lambda: dict(records.unreadable) == {"web.2": 2})
        assert [key for key, _ in records.items()] == ["web.1"]
        with pytest.raises(ProtocolError, match=r"too much for web\.2"):
            await records.read("web.2")


async def test_an_unreadable_record_that_was_put_again_during_a_resync_is_reported_again(
    server: EmbeddedServer,
) -> None:
    async with views(server) as [view]:
        await store(view.records._connection, "$KV.box_slots.web.1", b"nonsense")
        await eventually(lambda: view.told == [("web.1", None, None)])
        await server.kill()
        await eventually(lambda: not view.records.live)
        await server.start()
        async with connect(server.url) as other:
            await store(other, "$KV.box_slots.web.1", b"nonsense")
        await eventually(lambda: view.told == 2 * [("web.1", None, None)])


async def test_the_store_itself_can_be_asked(server: EmbeddedServer) -> None:
    async with views(server) as [view]:
        assert await view.records.read("web.1") is None
        revision = await view.records.create("web.1", Value(7))
        assert await view.records.read("web.1") == Record(Value(7), revision)
        await view.records.delete("web.1", revision)
        assert await view.records.read("web.1") is None


# ── what happens to views ────────────────────────────────────────────────────────────────


async def test_a_view_is_current_again_after_a_server_kill_and_reports_what_changed_meanwhile(
    server: EmbeddedServer,
) -> None:
    async with views(server) as [view]:
        revision = await view.records.create("web.1", Value(1))
        await server.kill()
        await eventually(lambda: not view.records.live)
        assert view.values() == {"web.1": 1}  # it keeps what it had
        await server.start()
        async with connect(server.url) as other:
            await store(other, "$KV.box_slots.web.1", b'{"n":2}')
            await store(other, "$KV.box_slots.web.2", b'{"n":3}')
        await eventually(lambda: view.values() == {"web.1": 2, "web.2": 3})
        await view.records.wait_live()
        assert ("web.1", 1, 2) in view.told
        with pytest.raises(Conflict):
            await view.records.update("web.1", Value(9), revision)


async def test_a_wiped_store_is_detected_and_sequences_start_again(server: EmbeddedServer) -> None:
    async with views(server) as [view]:
        for number in range(5):
            await view.records.create(f"web.{number}", Value(number))
        await server.kill()
        shutil.rmtree(server.directory / "jetstream")
        await server.start()
        connection = view.records._connection
        await connection.wait_connected()
        await topology.ensure(connection)
        await eventually(lambda: view.values() == {} and view.records.live)
        assert view.records.seq == 0
        assert await view.records.create("web.1", Value(1)) == 1


@pytest.mark.slow
async def test_a_wait_for_a_sequence_that_the_store_lost_ends_with_the_next_view(
    server: EmbeddedServer,
) -> None:
    async with views(server) as [view], task_scope() as tasks:
        await view.records.create("web.1", Value(1))
        waiting = tasks.create_task(view.records.wait_for(2))
        connection = view.records._connection
        await jetstream(connection).delete_stream("KV_box_slots")
        await topology.ensure(connection)
        async with asyncio.timeout(30):
            await waiting
        assert view.values() == {}


@pytest.mark.slow
async def test_a_stream_that_is_re_created_unseen_is_detected(
    server: EmbeddedServer,
) -> None:
    async with views(server) as [view]:
        await view.records.create("web.1", Value(1))
        connection = view.records._connection
        await jetstream(connection).delete_stream("KV_box_slots")
        await topology.ensure(connection)
        await eventually(lambda: view.values() == {} and view.records.live)
        assert view.told[-1] == ("web.1", 1, None)


@pytest.mark.slow
async def test_a_consumer_that_vanishes_is_replaced(server: EmbeddedServer) -> None:
    async with views(server) as [view]:
        connection = view.records._connection
        for consumer in await jetstream(connection).consumers_info("KV_box_slots"):
            await jetstream(connection).delete_consumer("KV_box_slots", consumer.name)
        await eventually(lambda: view.live.count(True) == 2)
        await view.records.create("web.1", Value(1))
        async with connect(server.url) as other:
            await store(other, "$KV.box_slots.web.2", b'{"n":2}')
        await eventually(lambda: view.values() == {"web.1": 1, "web.2": 2})


async def test_a_message_lost_on_the_way_resyncs_the_view(server: EmbeddedServer) -> None:
    async with views(server) as [view], connect(server.url) as other:
        connection = view.records._connection
        handlers = connection._client.handlers
        dropped: list[str] = []

        def lossy(handler: Handler) -> Handler:
            def handle(message: Message) -> None:
                if "web.2" in message.subject and not dropped:
                    dropped.append(message.subject)
                else:
                    handler(message)

            return handle

        handlers.update({sid: lossy(handler) for sid, handler in handlers.items()})
        for number in (1, 2, 3):
            await store(other, f"$KV.box_slots.web.{number}", b'{"n":%d}' % number)
        await eventually(lambda: view.values() == {"web.1": 1, "web.2": 2, "web.3": 3})
        assert dropped
        assert view.live == [True, False, True]


async def test_hostile_subjects_and_strangers_do_not_stop_a_view(server: EmbeddedServer) -> None:
    async with views(server) as [view]:
        port = int(server.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await reader.readline()
        writer.write(b'CONNECT {"verbose":false,"headers":true}\r\n')
        writer.write(b"PUB $KV.box_slots.\xff\xfe 2\r\n{}\r\n")
        writer.write(b"HPUB $KV.box_slots.head 5 7\r\nABCDE{}\r\nPING\r\n")
        await writer.drain()
        while (await reader.readline()) != b"PONG\r\n":
            pass
        writer.close()
        await view.records.create("web.1", Value(1))
        await eventually(lambda: len(view.records.unreadable) == 2)
        assert view.values() == {"web.1": 1}
        assert view.records.live


@pytest.mark.parametrize("answer", [b"{}", b'{"hello":1}', b"ok", b"\xff", b"null"])
async def test_a_strangers_answer_is_no_acknowledgement(
    server: EmbeddedServer, answer: bytes
) -> None:
    async with connect(server.url) as connection:

        def meddle(message: Message) -> None:
            connection.publish(message.reply, answer)

        await connection.listen("subject", meddle)
        with pytest.raises(NoReply, match="outcome is unknown"):
            await store(connection, "subject", b"x")
        refusals = connection.metrics.refusals()
        assert refusals == {"store: not an acknowledgement": 1}
