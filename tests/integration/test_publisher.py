"""Publishing until it is stored, and stored once: whatever the server answers, or does not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace
from nats.js.api import StreamConfig

from bridge.box.state import lifecycle
from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.core.pending_request import PendingRequest
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.api import jetstream
from bridge.bus.jetstream.publish import OutgoingMessage, store
from bridge.bus.jetstream.publisher import LIMIT, Publisher
from bridge.errors import NoReply
from bridge.protocol import InstanceState, encode, now
from bridge.tasks import task_scope
from tests.faults.history import Told, check_history, read_history, states
from tests.faults.proxy import FaultyProxy
from tests.support import connect, eventually

S = InstanceState
DAY = 24 * 3600.0
STEPS = (S.BOOTING, S.READY, S.DRAINING, S.STOPPING, S.STOPPED)


def lives(count: int, *, ago: float = 0.0) -> list[OutgoingMessage]:
    """The events of so many whole lives of five events each, one step of each life in turn."""
    at = now() - timedelta(seconds=ago)
    living = [lifecycle.begin(f"web-{number}", "web", at) for number in range(count)]
    messages = []
    for state in STEPS:
        for index, life in enumerate(living):
            living[index], event = lifecycle.step(life, state, at)
            name, seq = event.instance_id, living[index].seq
            messages.append(
                OutgoingMessage(
                    subject="box.events.web",
                    data=encode(event),
                    headers={"Nats-Msg-Id": f"{name}.{seq}", "Box-Seq": str(seq)},
                    key=name,
                    at=at,
                )
            )
    return messages


class Bench:
    """A Publisher into an events stream, and how often it had to have the stream restored."""

    def __init__(self, connection: Connection, window: float) -> None:
        self.connection = connection
        self.restored = 0
        self._lifetimes = topology.Lifetimes(duplicates=window)
        self.publisher = Publisher(connection, "BOX_EVENTS", window, now, self.restore)

    async def restore(self) -> None:
        self.restored += 1
        await topology.ensure(self.connection, lifetimes=self._lifetimes)

    def counted(self, kind: str) -> float:
        return count(self.connection, kind)

    async def stored(self) -> list[Told]:
        """What is stored, once it is checked to be every event of whole lives, once."""
        told = await read_history(self.connection, "web")
        for chain in check_history(told).values():
            assert states(chain) == [*STEPS]
        return told


def count(connection: Connection, kind: str) -> float:
    """How often something happened to a connection."""
    labels = {"kind": kind}
    return connection.metrics.registry.get_sample_value("box_bridge_bus_events_total", labels) or 0


@asynccontextmanager
async def bench(
    server: EmbeddedServer, *, window: float = DAY, **settings: Any
) -> AsyncIterator[Bench]:
    """A Publisher and its stream; `settings` are what the stream has otherwise than usual."""
    async with connect(server.url) as connection:
        await jetstream(connection).add_stream(events_stream(connection, window, **settings))
        yield Bench(connection, window)


def events_stream(connection: Connection, window: float, **settings: Any) -> StreamConfig:
    lifetimes = topology.Lifetimes(duplicates=window)
    [events, *_] = topology.streams(connection.subjects, lifetimes=lifetimes)
    return events.evolve(**settings)


async def until_forgotten(connection: Connection) -> None:
    """Return when the stream has forgotten the ids of all that was stored before."""
    canary = replace(lives(1)[0], headers={"Nats-Msg-Id": "canary", "Box-Seq": "1"})
    canary = replace(canary, subject="box.events.canary")

    async def stored_again() -> bool:
        ack = await store(connection, canary.subject, canary.data, headers=canary.headers)
        return not ack.duplicate

    assert await stored_again()
    await eventually(stored_again, what="the ids are forgotten")


# ── what is sent how ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", [10, LIMIT])
async def test_ten_and_more_are_stored_as_one_batch_in_their_order(
    server: EmbeddedServer, number: int
) -> None:
    async with bench(server) as at:
        messages = lives(number // len(STEPS))
        await at.publisher.publish(messages)
        told = await at.stored()
        assert [encode(one.event) for one in told] == [message.data for message in messages]
        assert len({one.batch for one in told}) == 1
        assert told[0].batch


async def test_fewer_than_ten_are_stored_one_by_one(server: EmbeddedServer) -> None:
    async with bench(server) as at:
        await at.publisher.publish(lives(1))
        assert [one.batch for one in await at.stored()] == [""] * 5


async def test_a_stream_without_batches_gets_one_by_one(server: EmbeddedServer) -> None:
    async with bench(server, allow_atomic=None) as at:
        await at.publisher.publish(lives(20))
        assert at.counted("batch_refused") == 1
        assert {one.batch for one in await at.stored()} == {""}


async def test_an_older_server_is_sent_no_batch(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(server) as at:
        at.connection._client._server_info["api_lvl"] = 1
        await at.publisher.publish(lives(20))
        assert at.counted("batch_refused") == 0
        assert {one.batch for one in await at.stored()} == {""}


# ── what goes wrong ──────────────────────────────────────────────────────────────────────


class LostAnswer:
    """A fault: what is asked of `connection` is done, and `times` answers to those requests
    that `which` picks by their headers do not arrive.
    """

    def __init__(
        self, connection: Connection, which: Callable[[dict[str, str]], bool], times: int = 1
    ) -> None:
        self._really_ask = connection.ask
        self._which = which
        self._left = times
        self.lost: list[Message] = []
        connection.ask = self._ask  # type: ignore[method-assign]

    def _ask(self, subject: str, data: bytes = b"", **settings: Any) -> PendingRequest:
        asked = self._really_ask(subject, data, **settings)
        if self._left and self._which(settings.get("headers") or {}):
            self._left -= 1
            return UnansweredRequest(asked, self.lost)
        return asked


class UnansweredRequest(PendingRequest):
    """A request whose answer comes, and is put into `lost`."""

    def __init__(self, asked: PendingRequest, lost: list[Message]) -> None:
        self.subject = asked.subject
        self._asked = asked
        self._lost = lost

    async def answer(self, within: float | None = None) -> Message:
        self._lost.append(await self._asked.answer(within))
        raise NoReply(self.subject, 0.0)

    def drop(self) -> None:
        self._asked.drop()


async def test_a_batch_whose_answer_is_lost_is_sent_again_and_stored_once(
    server: EmbeddedServer,
) -> None:
    async with bench(server) as at:
        fault = LostAnswer(at.connection, lambda headers: "Nats-Batch-Commit" in headers)
        await at.publisher.publish(lives(20))
        assert b'"count":100' in fault.lost[0].data
        assert at.counted("batch_refused") == 1  # as a duplicate
        told = await at.stored()
        assert len(told) == 100
        assert len({one.batch for one in told}) == 1


async def test_a_batch_whose_answer_the_network_loses_is_sent_again_and_stored_once(
    server: EmbeddedServer,
) -> None:
    async with bench(server) as at, FaultyProxy.to(server.url) as proxy, connect(proxy.url) as far:
        request = far.request

        async def ask(subject: str, data: bytes = b"", **settings: Any) -> Message:
            if "Nats-Batch-Commit" in settings["headers"] and not proxy.held:
                proxy.cut_to_client()
            message: Message = await request(subject, data, **settings)
            return message

        far.request = ask
        publisher = Publisher(far, "BOX_EVENTS", DAY, now, at.restore)
        async with task_scope() as tasks:
            publishing = tasks.create_task(publisher.publish(lives(20)))
            await eventually(lambda: proxy.held)
            assert len(await at.stored()) == 100
            assert not publishing.done()
            proxy.cut()
            proxy.mend()
            await publishing
        assert count(far, "disconnected") == 1
        assert count(far, "batch_refused") == 1  # as a duplicate
        assert len(await at.stored()) == 100


async def test_a_single_that_fails_is_not_overtaken_by_what_follows_it(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    async with bench(server, allow_atomic=None) as at:
        ask = at.connection.ask

        def fail_once(*arguments: Any, headers: Any = None, **settings: Any) -> PendingRequest:
            name = (headers or {}).get("Nats-Msg-Id", "")
            tried.append(name)
            if name == "web-1.2" and tried.count(name) == 1:
                raise NoReply("box.events.web", 5.0)  # and nothing was stored
            return ask(*arguments, headers=headers, **settings)

        monkeypatch.setattr(at.connection, "ask", fail_once)
        await at.publisher.publish(lives(3))
        assert tried.count("web-1.2") == 2
        assert tried.index("web-1.3") > max(n for n, name in enumerate(tried) if name == "web-1.2")
        assert len(await at.stored()) == 15


@pytest.mark.slow
async def test_singles_whose_answers_are_lost_are_stored_once(server: EmbeddedServer) -> None:
    async with bench(server, allow_atomic=None) as at:
        fault = LostAnswer(
            at.connection,
            lambda headers: "Nats-Msg-Id" in headers and "Nats-Batch-Id" not in headers,
            times=4,
        )
        await at.publisher.publish(lives(4))
        assert len(fault.lost) == 4
        assert len(await at.stored()) == 20


async def test_a_missing_stream_is_restored_and_gets_everything(server: EmbeddedServer) -> None:
    async with bench(server) as at:
        await jetstream(at.connection).delete_stream("BOX_EVENTS")
        await at.publisher.publish(lives(1))
        assert at.restored == 1
        await jetstream(at.connection).delete_stream("BOX_EVENTS")
        await at.publisher.publish(lives(20))
        assert at.restored == 2
        assert len(await at.stored()) == 100


# ── what was sent before, perhaps ────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", [1, 20])
async def test_what_a_killed_process_had_sent_is_stored_once(
    server: EmbeddedServer, number: int
) -> None:
    async with bench(server) as at:
        messages = lives(number)
        await at.publisher.publish(messages)
        after = Bench(at.connection, DAY)
        await after.publisher.publish(messages, doubtful=True)
        assert len(await at.stored()) == 5 * number


async def test_of_a_batch_that_was_stored_in_part_the_rest_is_stored(
    server: EmbeddedServer,
) -> None:
    async with bench(server) as at:
        messages = lives(4)
        await at.publisher.publish(messages[:12])
        await at.publisher.publish(messages, doubtful=True)
        assert at.counted("batch_refused") == 1
        assert len(await at.stored()) == 20


@pytest.mark.parametrize("number", [1, 20])
async def test_what_is_older_than_the_streams_memory_is_looked_up_and_not_stored_twice(
    server: EmbeddedServer, number: int
) -> None:
    async with bench(server, window=0.2) as at:
        messages = lives(number, ago=60)
        await at.publisher.publish(messages[: len(messages) // 2])
        await until_forgotten(at.connection)
        await at.publisher.publish(messages, doubtful=True)
        assert len(await at.stored()) == 5 * number


async def test_what_is_looked_up_in_a_stream_that_is_gone_is_stored_in_a_new_one(
    server: EmbeddedServer,
) -> None:
    async with bench(server) as at:
        messages = lives(4, ago=DAY)
        await at.publisher.publish(messages)
        await jetstream(at.connection).delete_stream("BOX_EVENTS")
        await at.publisher.publish(messages, doubtful=True)
        assert len(await at.stored()) == 20


async def test_what_is_from_the_future_is_looked_up_for_the_clock_may_have_been_set_back(
    server: EmbeddedServer,
) -> None:
    async with bench(server, window=0.2) as at:
        messages = lives(2, ago=-3600)
        await at.publisher.publish(messages)
        await until_forgotten(at.connection)
        await at.publisher.publish(messages, doubtful=True)
        assert len(await at.stored()) == 10


# ── ids that another program has taken ───────────────────────────────────────────────────


@pytest.mark.parametrize("count", [1, 4], ids=["singly", "in a batch"])
async def test_an_event_is_stored_although_another_program_has_taken_its_id(
    server: EmbeddedServer, count: int
) -> None:
    async with bench(server) as made:
        events = lives(count)
        for event in events[1:3]:
            await store(made.connection, event.subject, b"{}", headers=event.headers)
        await made.publisher.publish(events)
        await made.publisher.publish(events)
        stream = await jetstream(made.connection).stream_info("BOX_EVENTS")
        assert stream.state.messages == len(events) + 2
        js = jetstream(made.connection)
        stored = [await js.get_msg("BOX_EVENTS", seq) for seq in range(3, len(events) + 3)]
        assert sorted(item.data or b"" for item in stored) == sorted(item.data for item in events)
