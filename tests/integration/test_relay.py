"""Events to an HTTP endpoint: each one, in order for each instance, whatever the endpoint does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from nats.js.api import RawStreamMsg

from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.api import jetstream
from bridge.bus.jetstream.dead_letters import dead_stream
from bridge.bus.jetstream.publish import store
from bridge.errors import ConfigError, NameRefused
from bridge.gateway.relay.delivery_queue import Backoff
from bridge.gateway.relay.relay import Notice, Relay, RelayConfig
from bridge.protocol import InstanceState
from bridge.subjects import Subjects
from bridge.tasks import task_scope
from tests.receiver import TAKEN, Answer, Receiver, Request, receiving, tell
from tests.support import connect, eventually

S = InstanceState
QUICK = Backoff(first=0.02, most=0.1)
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
async def bus(server: EmbeddedServer) -> AsyncIterator[Connection]:
    """A connection to a server with a fleet's streams."""
    async with connect(server.url) as connection:
        await topology.ensure(connection)
        yield connection


class Running:
    """A relay at work, and what it has said."""

    def __init__(self, connection: Connection, receiver: Receiver, **settings: Any) -> None:
        self.notices: list[Notice] = []
        config = RelayConfig(url=receiver.url, **{"backoff": QUICK, "ack_wait": 2.0, **settings})
        self.relay = Relay(connection, config, self.notices.append)

    def reports_of(self, what: str) -> list[str]:
        return [notice.text for notice in self.notices if notice.what == what]


@asynccontextmanager
async def relaying(
    connection: Connection, receiver: Receiver, **settings: Any
) -> AsyncIterator[Running]:
    """A relay from before the first event on; it is stopped in order at the end."""
    running = Running(connection, receiver, **settings)
    async with task_scope() as tasks:
        work = tasks.create_task(running.relay.run())
        await eventually(lambda: work.done() or running.reports_of("started"))
        yield running
        running.relay.stop()
        await work


async def took(receiver: Receiver, instance: str, *numbers: int) -> None:
    """Return when the receiver has taken these events of the instance, in this order."""
    await eventually(
        lambda: receiver.first_taken(instance) == list(numbers),
        what=f"{instance} {numbers}; so far {receiver.taken}",
    )


async def letters(connection: Connection) -> list[RawStreamMsg]:
    """What is stored as dead letters, in its order."""
    js = jetstream(connection)
    last = (await js.stream_info("BOX_DEAD")).state.last_seq
    return [await js.get_msg("BOX_DEAD", seq) for seq in range(1, last + 1)]


async def unacknowledged(connection: Connection, durable: str = "relay") -> int:
    info = await jetstream(connection).consumer_info("BOX_EVENTS", durable)
    return (info.num_ack_pending or 0) + (info.num_pending or 0)


# ── what arrives ─────────────────────────────────────────────────────────────────────────


async def test_an_event_arrives_as_a_cloud_event_with_its_body_unchanged(bus: Connection) -> None:
    async with receiving() as receiver, relaying(bus, receiver, headers={"X-Key": "k"}):
        odd = (
            b'{ "instance_id":"web-1","service":"web","from_state":"Booting","to_state":"Ready",'
            b'"timestamp":"2026-11-21T08:00:00.123456789Z","message":"a\\u00e9","newer":[1] }'
        )
        await tell(bus, "web-1", 2, data=odd, headers={"traceparent": TRACE})
        await took(receiver, "web-1", 2)
        [request] = receiver.requests
        assert request.body == odd
        assert request.path == "/events"
        found = {name.lower(): value for name, value in request.headers.items()}
        expected = {
            "ce-specversion": "1.0",
            "ce-id": "web-1.2",
            "ce-source": "/box/box-a",
            "ce-type": "dev.box-bridge.instance.ready",
            "ce-subject": "web-1",
            "ce-time": "2026-11-21T08:00:00.123457Z",
            "content-type": "application/json",
            "traceparent": TRACE,
            "ce-traceparent": TRACE,
            "x-key": "k",
        }
        assert expected.items() <= found.items()


async def test_only_what_was_asked_for_is_sent(bus: Connection) -> None:
    async with (
        receiving() as receiver,
        relaying(bus, receiver, services=("web", "api"), states=(S.FAILED,)),
    ):
        await tell(bus, "web-1", 1)
        await tell(bus, "jobs-1", 1, service="jobs", state=S.FAILED)
        await tell(bus, "web-1", 2, state=S.FAILED)
        await tell(bus, "api-1", 1, service="api", state=S.FAILED)
        await took(receiver, "api-1", 1)
        await took(receiver, "web-1", 2)
        assert len(receiver.requests) == 2


async def test_a_malformed_event_is_left_out_and_counted(bus: Connection) -> None:
    async with receiving() as receiver, relaying(bus, receiver):
        await store(bus, "box.events.web", b"nonsense")
        await tell(bus, "web-1", 1, service="web", data=b'{"instance_id":1}')
        await tell(bus, "web-1", 2)
        await took(receiver, "web-1", 2)
        assert bus.metrics.refusals() == {"events: malformed": 2}


async def test_a_hundred_events_of_ten_instances_arrive_once_each_and_in_order(
    bus: Connection,
) -> None:
    async with receiving() as receiver:
        async with relaying(bus, receiver) as running:
            for number in range(1, 11):
                for instance in range(10):
                    await tell(bus, f"web-{instance}", number)
            for instance in range(10):
                await took(receiver, f"web-{instance}", *range(1, 11))
            assert len(receiver.taken) == 100
        assert running.notices[-1].counts.delivered == 100
        assert running.reports_of("stopped") == [
            "100 delivered, 0 attempts failed, 0 dead letters, 0 held and left for the next run"
        ]
        assert await unacknowledged(bus) == 0


# ── what a receiver can do ───────────────────────────────────────────────────────────────


async def test_an_instance_whose_event_fails_waits_for_it_and_the_others_do_not(
    bus: Connection,
) -> None:
    mended = asyncio.Event()

    def script(request: Request) -> Answer:
        return 500 if request.id == "web-1.1" and not mended.is_set() else TAKEN

    async with receiving(script) as receiver, relaying(bus, receiver, max_attempts=10_000):
        for number in (1, 2, 3):
            await tell(bus, "web-1", number)
            await tell(bus, "web-2", number)
        await took(receiver, "web-2", 1, 2, 3)
        await eventually(lambda: sum(one.id == "web-1.1" for one in receiver.requests) > 3)
        assert receiver.first_taken("web-1") == []
        mended.set()
        await took(receiver, "web-1", 1, 2, 3)


async def hang(request: Request) -> Answer:
    await asyncio.sleep(60)
    return TAKEN


@pytest.mark.parametrize(
    "failure", ["500", "429", pytest.param("stall", marks=pytest.mark.slow), "hang up", "redirect"]
)
async def test_whatever_fails_for_a_time_is_sent_again_until_it_is_taken(
    bus: Connection, failure: str
) -> None:
    def script(request: Request) -> Any:
        if request.number > 2:
            return TAKEN
        if failure == "stall":
            return hang(request)
        if failure == "redirect":
            return web.Response(status=307, headers={"Location": "/elsewhere"})
        return None if failure == "hang up" else int(failure)

    async with (
        receiving(script) as receiver,
        relaying(bus, receiver, timeout=0.3 if failure == "stall" else 10.0),
    ):
        for number in (1, 2):
            await tell(bus, "web-1", number)
            await tell(bus, "web-2", number)
        await took(receiver, "web-1", 1, 2)
        await took(receiver, "web-2", 1, 2)
        assert {request.path for request in receiver.requests} == {"/events"}
        assert len(receiver.requests) == 12
        assert len(set(receiver.taken)) == 4


async def test_a_retry_after_delays_the_events_of_all_instances(bus: Connection) -> None:
    def script(request: Request) -> Answer:
        if len(receiver.requests) == 1:
            return web.Response(status=503, headers={"Retry-After": "1"})
        return TAKEN

    async with receiving(script) as receiver, relaying(bus, receiver):
        await tell(bus, "web-1", 1)
        await eventually(lambda: receiver.requests)
        await tell(bus, "web-2", 1)
        await took(receiver, "web-1", 1)
        await took(receiver, "web-2", 1)
        first, *others = receiver.requests
        assert min(other.at for other in others) - first.at >= 1.0


async def test_a_receiver_that_is_gone_and_comes_back_gets_everything(bus: Connection) -> None:
    async with receiving() as receiver, relaying(bus, receiver) as running:
        await tell(bus, "web-1", 1)
        await took(receiver, "web-1", 1)
        await receiver.stop()
        for number in (2, 3):
            await tell(bus, "web-1", number)
            await tell(bus, "web-2", number)
        await eventually(lambda: running.reports_of("outage"))
        assert "connect" in running.reports_of("outage")[0]
        assert not running.reports_of("recovered")
        await receiver.start()
        await took(receiver, "web-1", 1, 2, 3)
        await took(receiver, "web-2", 2, 3)
        assert len(running.reports_of("outage")) == len(running.reports_of("recovered")) == 1


# ── dead letters ─────────────────────────────────────────────────────────────────────────


async def test_what_the_receiver_refuses_is_a_dead_letter_at_once(bus: Connection) -> None:
    def script(request: Request) -> Answer:
        if request.id == "web-1.1":
            return web.Response(status=400, text="no\nsuch thing")
        return TAKEN

    async with receiving(script) as receiver, relaying(bus, receiver, durable="alerts") as running:
        body = await tell(bus, "web-1", 1, headers={"traceparent": TRACE})
        await tell(bus, "web-1", 2)
        await took(receiver, "web-1", 2)
        [letter] = await letters(bus)
        assert (letter.subject, letter.data) == ("box.dead.alerts", body)
        assert letter.headers == {
            "Nats-Msg-Id": "alerts.web-1.1",
            "Box-Seq": "1",
            "Box-Host": "box-a",
            "traceparent": TRACE,
            "Box-Dead-Id": "web-1.1",
            "Box-Dead-Reason": "HTTP 400: no such thing",
            "Box-Dead-Attempts": "1",
            "Box-Dead-Seq": "1",
        }
        assert [request.id for request in receiver.requests] == ["web-1.1", "web-1.2"]
        assert "box.dead.alerts: HTTP 400: no such thing" in running.reports_of("dead_letter")[0]


async def test_what_fails_too_often_is_a_dead_letter(bus: Connection) -> None:
    def script(request: Request) -> Answer:
        return 500 if request.id == "web-1.1" else TAKEN

    async with receiving(script) as receiver, relaying(bus, receiver, max_attempts=3):
        await tell(bus, "web-1", 1)
        await tell(bus, "web-1", 2)
        await took(receiver, "web-1", 2)
        assert sum(request.id == "web-1.1" for request in receiver.requests) == 3
        [letter] = await letters(bus)
        assert letter.headers is not None
        assert letter.headers["Box-Dead-Attempts"] == "3"


async def test_a_dead_letter_that_can_never_be_stored_holds_up_no_other(bus: Connection) -> None:
    small = dead_stream(Subjects()).evolve(max_msg_size=700)
    async with (
        receiving(lambda request: 400) as receiver,
        relaying(bus, receiver, durable="alerts") as running,
    ):
        await jetstream(bus).update_stream(small)
        await tell(bus, "web-1", 1, headers={"traceparent": TRACE, "X-Long": "x" * 700})
        await tell(bus, "web-1", 2)
        large, plain = await eventually(
            lambda: said if len(said := running.reports_of("dead_letter")) == 2 else None
        )
        assert "stored without the payload: " in large
        assert "without the payload" not in plain
        first, second = await letters(bus)
        assert (first.data or b"", bool(second.data)) == (b"", True)
        assert first.headers is not None
        assert first.headers["Box-Dead-Id"] == "web-1.1"


async def test_an_event_leaves_only_when_its_dead_letter_is_stored(bus: Connection) -> None:
    small = dead_stream(Subjects()).evolve(max_bytes=10_000)
    async with receiving(lambda request: 400) as receiver:
        async with relaying(bus, receiver) as running:
            await jetstream(bus).update_stream(small)
            await store(bus, "box.dead.other", b"x" * 9900)  # it is full
            await tell(bus, "web-1", 1)
            await eventually(lambda: receiver.requests)
            await eventually(lambda: _retries(bus) > 1)
            assert await unacknowledged(bus) == 1
            assert not running.reports_of("dead_letter")
            await jetstream(bus).purge_stream("BOX_DEAD")
            await eventually(lambda: running.reports_of("dead_letter"))
        assert await unacknowledged(bus) == 0
        assert len(receiver.requests) == 1


def _retries(connection: Connection) -> float:
    registry = connection.metrics.registry
    return registry.get_sample_value("box_bridge_bus_events_total", {"kind": "publish_retry"}) or 0


async def test_a_secret_that_the_receiver_repeats_is_not_reported(bus: Connection) -> None:
    def script(request: Request) -> Answer:
        return web.Response(status=403, text=f"bad: {request.headers['Authorization']}")

    secret = "Bearer s3cret"
    async with (
        receiving(script) as receiver,
        relaying(bus, receiver, headers={"Authorization": secret}) as running,
    ):
        await tell(bus, "web-1", 1)
        [said] = await eventually(lambda: running.reports_of("dead_letter"))
        [letter] = await letters(bus)
        assert receiver.requests[0].headers["Authorization"] == secret
        assert "HTTP 403: bad: ***" in said
        assert "s3cret" not in f"{letter.headers} {running.notices}"


# ── beginning and end ────────────────────────────────────────────────────────────────────


@pytest.mark.slow
async def test_a_stop_finishes_what_is_under_way_and_leaves_the_rest_in_order(
    bus: Connection,
) -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def script(request: Request) -> Answer:
        asked.set()
        await go.wait()
        return TAKEN

    async with receiving(script) as receiver:
        async with relaying(bus, receiver) as running:
            for number in range(1, 6):
                await tell(bus, "web-1", number)
            await asked.wait()
            await eventually(lambda: len(running.relay._queue) == 5)
            running.relay.stop()
            go.set()
        assert receiver.taken == ["web-1.1"]
        assert running.notices[-1].counts.left == 4
        await tell(bus, "web-1", 6)
        async with relaying(bus, receiver) as again:
            await took(receiver, "web-1", 1, 2, 3, 4, 5, 6)
        assert len(again.reports_of("waiting")) == 1
        assert len(receiver.taken) == 6


async def test_a_stop_does_not_wait_for_a_receiver_that_hangs(bus: Connection) -> None:
    async with receiving(hang) as receiver:
        async with relaying(bus, receiver, timeout=0.3) as running:
            await tell(bus, "web-1", 1)
            await eventually(lambda: receiver.requests)
        assert running.notices[-1].counts.left == 1


async def test_a_new_durable_begins_now_and_an_old_one_where_it_was(bus: Connection) -> None:
    async with receiving() as receiver:
        await tell(bus, "web-1", 1)
        async with relaying(bus, receiver):
            await tell(bus, "web-1", 2)
            await took(receiver, "web-1", 2)
        await tell(bus, "web-1", 3)
        async with relaying(bus, receiver):
            await took(receiver, "web-1", 2, 3)


async def test_what_cannot_be_is_refused_before_anything_is_sent(bus: Connection) -> None:
    with pytest.raises(NameRefused):
        Relay(bus, RelayConfig(url="http://127.0.0.1/", durable="a.b"))
    with pytest.raises(ConfigError, match="not a URL"):
        await Relay(bus, RelayConfig(url="127.0.0.1")).run()
