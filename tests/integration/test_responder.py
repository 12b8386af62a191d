"""Answering requests: in turn, at once, bounded, and to nobody's subject but an inbox."""

from __future__ import annotations

import asyncio
import functools
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.service.discovery import Description
from bridge.bus.service.endpoint import Deferred, Endpoint, Reply
from bridge.bus.service.responder import MAX_BODY, Responder
from bridge.errors import NoResponders, NotPermitted
from bridge.reply_codes import Refusal, ReplyCode
from bridge.subjects import REPLY_CODE
from bridge.tasks import task_scope
from tests.integration.test_connection import configured, raw
from tests.support import connect, eventually

DESCRIPTION = Description(
    name="box",
    id="box-a-1",
    version="1.2.3",
    description="for tests",
    started="2026-11-21T08:00:00Z",
    metadata={"host": "box-a"},
)


class Service:
    """An endpoint that does what the request says."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.under_way = 0
        self.most = 0
        self.go = asyncio.Event()

    def at_once(self, message: Message) -> Reply | Deferred:
        if not message.data.startswith(b"quick"):
            return functools.partial(self._deferred, message)
        if message.data == b"quick crash":
            raise RuntimeError("secret detail")
        return Reply(data=b"at once " + message.data)

    async def _deferred(self, message: Message) -> Reply:
        return Reply(data=b"deferred " + message.data)

    async def handle(self, message: Message) -> Reply | None:
        self.taken.append(message.data)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            if message.data == b"wait":
                await self.go.wait()
            if message.data == b"crash":
                raise RuntimeError("secret detail")
            if message.data == b"silent":
                return None
            return Reply(data=b"done " + message.data, headers={"Ours": "1"})
        finally:
            self.under_way -= 1


def refused(refusal: Refusal) -> Reply:
    data, headers = str(refusal).encode(), {REPLY_CODE: refusal.code}
    return Reply(data=data, headers=headers, outcome="refused", error=str(refusal))


@asynccontextmanager
async def responding(
    server: EmbeddedServer, *, quick: bool = False, **settings: Any
) -> AsyncIterator[Any]:
    """A service, a responder that answers for it, and a caller's connection."""
    async with (
        connect(server.url, **settings) as connection,
        connect(server.url, **settings) as caller,
    ):
        service = Service()
        endpoint = Endpoint(
            name="scale",
            subject="box.scale",
            queue="box",
            handle=service.handle,
            refuse=refused,
            at_once=service.at_once if quick else None,
        )
        responder = Responder(connection, DESCRIPTION, [endpoint])
        async with task_scope() as tasks:
            tasks.create_task(responder.run())
            await responder.listening()
            yield service, responder, caller


async def ask(caller: Connection, data: bytes, **more: Any) -> bytes:
    return (await caller.request("box.scale", data, **more)).data


async def test_requests_are_handled_at_once_within_a_bound(server: EmbeddedServer) -> None:
    async with responding(server) as (service, _, caller):
        waiting = [asyncio.ensure_future(ask(caller, b"wait", timeout=30)) for _ in range(200)]
        await eventually(lambda: service.most == 64)
        assert len(service.taken) == 64
        service.go.set()
        assert await asyncio.gather(*waiting) == [b"done wait"] * 200
        assert service.most == 64


async def test_a_handlers_exception_reaches_neither_the_caller_nor_the_loop(
    server: EmbeddedServer,
) -> None:
    async with responding(server) as (_, _, caller):
        reply = await caller.request("box.scale", b"crash")
        assert reply.data == b"internal error: see the log of the Box"
        assert reply.headers["Box-Code"] == ReplyCode.INTERNAL_ERROR
        assert await ask(caller, b"x") == b"done x"


async def test_an_immediate_answer_skips_an_empty_queue_but_never_overtakes_a_waiting_request(
    server: EmbeddedServer,
) -> None:
    async with responding(server, quick=True) as (service, responder, caller):
        assert await ask(caller, b"quick 1") == b"at once quick 1"
        assert service.taken == []
        assert await ask(caller, b"slow") == b"deferred slow"
        assert service.taken == [], "what at_once defers is not read again"
        assert await ask(caller, b"quick crash") == b"internal error: see the log of the Box"
        [endpoint], seen = responder._endpoints, list[bytes]()
        await caller.listen("_INBOX.here.*", lambda message: seen.append(message.data))
        await caller.flush()
        for data in (b"slow 2", b"quick 2"):  # as they come in one piece
            responder._receive(endpoint, Message("box.scale", "_INBOX.here.x", data, b""))
        await eventually(lambda: len(seen) == 2)
        assert seen == [b"deferred slow 2", b"done quick 2"]
        [stats] = responder._stats()
        assert (stats.num_requests, stats.num_errors) == (5, 1)


async def test_a_body_over_the_bound_never_reaches_the_handler(server: EmbeddedServer) -> None:
    async with responding(server) as (service, _, caller):
        answer = await ask(caller, b"x" * (MAX_BODY + 1))
        assert answer == f"a body of {MAX_BODY + 1} bytes is too large: at most {MAX_BODY}".encode()
        assert service.taken == []
        assert await ask(caller, b"x" * MAX_BODY) == b"done " + b"x" * MAX_BODY


async def test_headers_over_the_bound_do_not_wait_in_the_queue(server: EmbeddedServer) -> None:
    async with responding(server) as (service, _, caller):
        reply = await caller.request("box.scale", b"x", headers={"A": "x" * 100_000})
        assert reply.data.startswith(b"headers of 1000")
        assert reply.headers["Box-Code"] == ReplyCode.TOO_LARGE
        assert service.taken == []


async def test_replies_carry_our_headers_and_none_of_the_callers(server: EmbeddedServer) -> None:
    async with responding(server) as (_, _, caller):
        hostile = {"Nats-Rollup": "all", "KV-Operation": "PURGE", "Nats-Msg-Id": "1"}
        reply = await caller.request("box.scale", b"x", headers=hostile)
        assert dict(reply.headers) == {"Ours": "1"}


@pytest.mark.parametrize(
    "reply",
    ["", "$KV.box_services.web", "box.events.web", "_INBOX.>", "_INBOX.a.*", "_INBOXX.a", "_R_"],
)
async def test_a_request_whose_reply_subject_is_no_inbox_has_no_effect(
    server: EmbeddedServer, reply: str
) -> None:
    async with responding(server) as (service, responder, caller):
        leaked: list[Message] = []
        for subject in ("$KV.>", "box.events.>", "_INBOX.>", "_INBOXX.>", "_R_"):
            await caller.listen(subject, leaked.append)
        caller.publish("box.scale", b"x", reply=reply)
        assert await ask(caller, b"after") == b"done after"
        assert service.taken == [b"after"]
        assert [m.data for m in leaked if m.data != b"done after"] == []
        why = "reply subject is not an inbox" if reply else "no reply subject"
        assert responder._stats()[0].data == {why: 1}
        assert responder._stats()[0].num_errors == 1


async def test_other_inbox_prefixes_are_replied_to_once_they_are_configured(
    server: EmbeddedServer,
) -> None:
    async with (
        responding(server, reply_prefixes=["_GW"]),
        connect(server.url, inbox_prefix="_GW") as gateway,
    ):
        assert await ask(gateway, b"x") == b"done x"


async def test_a_request_of_unknown_outcome_gets_no_reply(server: EmbeddedServer) -> None:
    async with responding(server) as (service, _, caller):
        caller.publish("box.scale", b"silent", reply="_INBOX.mine")
        seen: list[Message] = []
        await caller.listen("_INBOX.mine", seen.append)
        assert await ask(caller, b"x") == b"done x"
        assert service.taken == [b"silent", b"x"]
        assert seen == []


async def test_requests_beyond_the_queue_are_refused_as_busy(server: EmbeddedServer) -> None:
    async with responding(server) as (service, responder, caller):
        responder._intake._free = 3
        requests = (caller.request("box.scale", b"wait", timeout=30) for _ in range(70))
        waiting = [asyncio.ensure_future(request) for request in requests]
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert {task.result().data for task in done} == {b"Busy: too many requests; try again"}
        assert {task.result().headers["Box-Code"] for task in done} == {ReplyCode.BUSY}
        service.go.set()
        answers = [reply.data for reply in await asyncio.gather(*waiting)]
        assert answers.count(b"done wait") == service.taken.count(b"wait") < 70
        assert set(answers) == {b"done wait", b"Busy: too many requests; try again"}


async def test_requests_beyond_the_waiting_bytes_are_refused_as_busy_until_there_is_room(
    server: EmbeddedServer,
) -> None:
    async with responding(server) as (service, responder, caller):
        responder._intake._free_size = 12_000
        held = [asyncio.ensure_future(ask(caller, b"wait", timeout=30)) for _ in range(64)]
        await eventually(lambda: service.under_way == 64)
        large = [asyncio.ensure_future(ask(caller, b"x" * 4000, timeout=30)) for _ in range(3)]
        done, waiting = await asyncio.wait(large, return_when=asyncio.FIRST_COMPLETED)
        assert [task.result() for task in done] == [b"Busy: too many requests; try again"]
        assert responder._intake.qsize() == 2
        service.go.set()
        answers = await asyncio.gather(*held, *waiting)
        assert all(answer.startswith(b"done") for answer in answers)
        assert responder._intake._free_size == 12_000
        assert (await ask(caller, b"x", headers={"A": "x" * 9000})) == b"done x"


async def test_a_flood_of_one_client_is_refused_as_busy_and_another_client_is_answered(
    server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with responding(server) as (service, responder, caller), connect(server.url) as flooder:
        replies: Counter[bytes] = Counter()
        await flooder.listen("_INBOX.flood.*", lambda message: replies.update([message.data]))
        for _ in range(10):
            for _ in range(1000):
                flooder.publish("box.scale", b"wait", reply="_INBOX.flood.1")
            await flooder.flush()
        await eventually(lambda: replies.total() == 10_000 - 4096 - 64)
        answer = asyncio.ensure_future(ask(caller, b"x", timeout=60))
        await eventually(lambda: responder._intake.qsize() == 4097)
        service.go.set()
        assert await answer == b"done x"
        assert service.taken.index(b"x") < 200, "it waits for its turn alone"
        await eventually(lambda: replies.total() == 10_000)
        assert set(replies) == {b"done wait", b"Busy: too many requests; try again"}
    busy = [record for record in caplog.records if "refused as busy" in record.message]
    assert len(busy) == 1
    assert "more requests of _INBOX.flood" in busy[0].message


async def test_answers_at_once_leave_half_of_the_time_to_other_work(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.bus.service.responder._MOST_AT_ONCE", -1)
    async with responding(server, quick=True) as (service, responder, _):
        [endpoint] = responder._endpoints
        for number in range(100):  # as they come in one piece
            message = Message("box.scale", "_INBOX.here.x", b"quick %d" % number, b"")
            responder._receive(endpoint, message)
        assert responder._intake.qsize() == 100
        await eventually(responder._intake.empty)
        assert service.taken[-1] == b"quick 99"


async def test_requests_taken_before_the_intake_stops_are_answered(server: EmbeddedServer) -> None:
    async with responding(server) as (service, responder, caller):
        waiting = asyncio.ensure_future(ask(caller, b"wait", timeout=30))
        await eventually(lambda: service.under_way)
        stopping = asyncio.ensure_future(responder.stop_intake())
        await eventually(lambda: not responder._listeners)
        with pytest.raises(NoResponders):
            await ask(caller, b"x")
        service.go.set()
        assert await waiting == b"done wait"
        await stopping


# ── discovery, as `nats micro` asks for it ───────────────────────────────────────────────


@pytest.mark.parametrize("subject", ["$SRV.{}", "$SRV.{}.box", "$SRV.{}.box.box-a-1"])
async def test_the_service_can_be_discovered(server: EmbeddedServer, subject: str) -> None:
    async with responding(server) as (_, _, caller):
        await ask(caller, b"x")
        await ask(caller, b"crash")
        identity = {
            "name": "box",
            "id": "box-a-1",
            "version": "1.2.3",
            "metadata": {"host": "box-a"},
        }
        endpoint = {"name": "scale", "subject": "box.scale", "queue_group": "box"}
        ping = json.loads((await caller.request(subject.format("PING"))).data)
        assert ping == {"type": "io.nats.micro.v1.ping_response", **identity}
        info = json.loads((await caller.request(subject.format("INFO"))).data)
        assert info == {
            "type": "io.nats.micro.v1.info_response",
            **identity,
            "description": "for tests",
            "endpoints": [{**endpoint, "metadata": {}}],
        }
        stats = json.loads((await caller.request(subject.format("STATS"))).data)
        [found] = stats.pop("endpoints")
        assert stats == {
            "type": "io.nats.micro.v1.stats_response",
            **identity,
            "started": "2026-11-21T08:00:00Z",
        }
        assert found.pop("processing_time") > 0
        assert found.pop("average_processing_time") > 0
        assert found == {
            **endpoint,
            "num_requests": 2,
            "num_errors": 1,
            "last_error": "internal error: see the log of the Box",
            "data": {},
        }


async def test_discovery_answers_inboxes_alone_and_knows_three_verbs(
    server: EmbeddedServer,
) -> None:
    async with responding(server) as (_, responder, caller):
        leaked: list[Message] = []
        await caller.listen("mine", leaked.append)
        caller.publish("$SRV.PING", reply="mine")
        caller.publish("$SRV.WHAT", reply="_INBOX.x")
        await caller.request("$SRV.PING.box")
        assert leaked == []
        refusals = responder._connection.metrics.refusals()
        assert refusals == {"discovery: reply subject is not an inbox": 1}


async def test_a_reply_subject_that_is_longer_in_bytes_than_in_letters_costs_one_reply(
    server: EmbeddedServer,
) -> None:
    async with responding(server) as (_, responder, caller):
        connection = responder._connection
        client = connection._client
        reply = b"_INBOX." + b"\xff" * 500 + "\N{EURO SIGN}".encode() * 1100
        async with raw(server) as peer:
            peer.write(b"PUB $SRV.PING %s 0\r\n\r\n" % reply)
            peer.write(b"PUB box.scale %s 1\r\nx\r\n" % reply)
        await eventually(lambda: len(connection.metrics.refusals()) == 2)
        assert set(connection.metrics.refusals()) == {
            "discovery: reply not sent",
            "scale: reply not sent",
        }
        assert await ask(caller, b"x") == b"done x"
        assert connection._client is client


async def test_listening_raises_not_permitted_if_the_server_refuses_an_endpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    user = '{ user: u, password: p, permissions: { subscribe: { deny: "box.scale" } } }'
    async with configured(tmp_path, f"authorization {{ users: [{user}] }}") as server:
        with pytest.raises(NotPermitted, match=r"may not listen on box\.scale"):
            async with responding(server, user="u", password="p"):
                raise AssertionError("nothing would ever reach the endpoint")
    assert 'Permissions Violation for Subscription to "box.scale"' in caplog.text


async def test_a_service_works_without_an_optional_endpoint_that_the_server_refuses(
    tmp_path: Path,
) -> None:
    user = '{ user: u, password: p, permissions: { subscribe: { deny: "box.logs.a" } } }'
    async with (
        configured(tmp_path, f"authorization {{ users: [{user}] }}") as server,
        connect(server.url, user="u", password="p") as connection,
        task_scope() as tasks,
    ):
        service = Service()
        endpoints = [
            Endpoint(
                name=name,
                subject=f"box.{name}",
                queue="box",
                handle=service.handle,
                refuse=refused,
                optional=name != "scale",
            )
            for name in ("scale", "logs.a")
        ]
        responder = Responder(connection, DESCRIPTION, endpoints)
        tasks.create_task(responder.run())
        await responder.listening()
        assert await ask(connection, b"x") == b"done x"
