"""Whatever a peer sends: a reply that says what is wrong and what would be right, nothing
changed, and the next good request answered. All of it through a raw NATS connection.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bridge.bus.core.message import Message
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream.api import jetstream
from bridge.protocol import ScaleResponse, decode
from tests.boxes import boxed
from tests.support import eventually


class RawClient:
    """The NATS protocol by hand: it validates nothing and sends what it is told."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.code = ""  # of the last answer
        self._inboxes = (f"_INBOX.raw.{number}" for number in itertools.count())

    @classmethod
    @asynccontextmanager
    async def connect(cls, server: EmbeddedServer) -> AsyncIterator[RawClient]:
        port = int(server.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await reader.readline()
        client = cls(reader, writer)
        writer.write(b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\n')
        writer.write(b"SUB _INBOX.raw.* 1\r\n")
        try:
            yield client
        finally:
            writer.close()
            await writer.wait_closed()

    def publish(self, subject: bytes, data: bytes, reply: bytes = b"", head: bytes = b"") -> None:
        if head:
            sizes = b"%d %d" % (len(head), len(head) + len(data))
            self._writer.write(b"HPUB %s %s %s\r\n%s%s\r\n" % (subject, reply, sizes, head, data))
        else:
            self._writer.write(b"PUB %s %s %d\r\n%s\r\n" % (subject, reply, len(data), data))

    async def ask(self, data: bytes, head: bytes = b"") -> ScaleResponse:
        """The answer to `data` on box.scale."""
        inbox = next(self._inboxes).encode()
        self.publish(b"box.scale", data, inbox, head)
        async with asyncio.timeout(60):
            while True:
                line = (await self._reader.readline()).split()
                if line and line[0] in (b"MSG", b"HMSG"):
                    payload = await self._reader.readexactly(int(line[-1]) + 2)
                    head_size = int(line[-2]) if line[0] == b"HMSG" else 0
                    if line[1] == inbox:  # else it answers something sent by the way
                        reply = Message("", "", payload[head_size:-2], payload[:head_size])
                        self.code = reply.headers.get("Box-Code", "")
                        return decode(ScaleResponse, payload[head_size:-2])
                if line and line[0] == b"PING":
                    self._writer.write(b"PONG\r\n")

    async def flush(self) -> None:
        self._writer.write(b"PING\r\n")
        async with asyncio.timeout(60):
            while (await self._reader.readline()) != b"PONG\r\n":
                pass


def body(**fields: Any) -> bytes:
    return json.dumps({"service": "web", "replicas": 1, **fields}).encode()


def headers(**lines: str) -> bytes:
    text = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items())
    return b"NATS/1.0\r\n" + text.encode() + b"\r\n"


PAST = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()

REFUSED = {
    "empty": (b"", b"", "not JSON"),
    "not JSON": (b"hello", b"", 'Expected JSON like {"service":"web","replicas":3}'),
    "not UTF-8": (b'{"service":"\xff\xfe","replicas":1}', b"", "not UTF-8 at byte 12"),
    "100,000 opening brackets": (b"[" * 100_000, b"", "100000 bytes is too large"),
    "60,000 opening brackets": (b"[" * 60_000, b"", "expected `object`, got `array`"),
    "brackets in an unknown field": (b'{"x":' + b"[" * 60_000, b"", "nested too deeply"),
    "a body over 64 KiB": (b" " * 65537, b"", "65537 bytes is too large: at most 65536"),
    "a 900 KB body": (b"x" * 900_000, b"", "900000 bytes is too large: at most 65536"),
    "a list": (b'["web",3]', b"", "expected `object`, got `array`"),
    "replicas as text": (body(replicas="3"), b"", "field `replicas`: expected `int`, got `str`"),
    "replicas -1": (body(replicas=-1), b"", "field `replicas`: expected `int` >= 0"),
    "replicas 2^32": (body(replicas=2**32), b"", "field `replicas`: expected `int` <= 4294967295"),
    "replicas 1.5": (body(replicas=1.5), b"", "field `replicas`: expected `int`, got `float`"),
    "replicas null": (body(replicas=None), b"", "field `replicas`: expected `int`, got `null`"),
    "no replicas": (b'{"service":"web"}', b"", "field `replicas`: missing"),
    "service a number": (body(service=3), b"", "field `service`: expected `str`, got `int`"),
    "config null": (body(config=None), b"", "field `config`: expected `object`"),
    "vcpus 256": (body(config={"vcpus": 256}), b"", "field `config.vcpus`"),
    "unknown service": (body(service="nope"), b"", "unknown service 'nope': no live Box lists it"),
    "a dot": (body(service="a.b"), b"", "'a.b' is not a name: use 1 to 63 of a-z"),
    "a star": (body(service="*"), b"", "'*' is not a name"),
    "all": (body(service=">"), b"", "'>' is not a name"),
    "no name": (body(service=""), b"", "'' is not a name"),
    "64 letters": (body(service="a" * 64), b"", "is not a name"),
    "a space": (body(service="a b"), b"", "'a b' is not a name"),
    "a line break": (body(service="web\n"), b"", "is not a name"),
    "a long request id": (body(request_id="x" * 200), b"", "request_id is longer than 128"),
    "an image": (body(config={"image": "nginx"}), b"", "image 'nginx' cannot be honoured"),
    "expired": (body(), headers(Box_Expires_At=PAST), "expired at 20"),
    "expiry without offset": (
        body(),
        headers(Box_Expires_At="2026-11-21T08:00:00"),
        "header field `Box-Expires-At`: '2026-11-21T08:00:00' is not RFC 3339",
    ),
    "expiry nonsense": (body(), headers(Box_Expires_At="soon"), "'soon' is not RFC 3339"),
    "a dry run that is none": (body(), headers(Box_Dry_Run="yes"), "'yes' must be 'true'"),
    "an unknown config mode": (body(), headers(Box_Config="merge"), "'merge' must be 'replace'"),
    "malformed headers": (body(), b"NATS/1.0\r\nnonsense\r\n\r\n", "headers: malformed"),
    "headers not UTF-8": (body(), b"NATS/1.0\r\nA: \xff\r\n\r\n", "headers: malformed"),
    "no headers at all": (body(), b"GARBAGE", "headers: malformed"),
}


CODES = {
    "100,000 opening brackets": "too_large",
    "a body over 64 KiB": "too_large",
    "a 900 KB body": "too_large",
    "unknown service": "unknown_service",
    "an image": "unsupported_config",
    "expired": "expired",
}


async def test_bad_requests_are_refused_with_the_cure_and_change_nothing(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path) as (_, recorder), RawClient.connect(server) as client:
        before = await client.ask(body(replicas=1, request_id="first"))
        assert before.accepted
        for name, (data, head, said) in REFUSED.items():
            answer = await client.ask(data, head)
            assert not answer.accepted, name
            assert said in str(answer.error), name
            assert client.code == CODES.get(name, "invalid_request"), name
            known = b'"web"' in data and "is not a name" not in str(answer.error)
            if known and b"service" in data and data.startswith(b'{"service": "web"'):
                assert answer.target_replicas == 1, f"{name}: the counts as they stand"
            good = await client.ask(body(replicas=1))
            assert (good.accepted, good.target_replicas) == (True, 1), f"after {name}"
            assert client.code == "", "an accepted request has no code"
        await eventually(lambda: recorder.events)
        services = {event.service for _, event in recorder.events}
        assert services == {"web"}
        assert len({event.instance_id for _, event in recorder.events}) == 1


async def test_an_expired_request_names_the_boxs_time(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path) as _, RawClient.connect(server) as client:
        answer = await client.ask(body(replicas=3), headers(Box_Expires_At=PAST))
        said = str(answer.error)
        assert f"it is {datetime.now(UTC):%Y-%m-%dT%H:%M}" in said
        assert "at Box box-a" in said
        later = (datetime.now(UTC) + timedelta(seconds=60)).isoformat()
        assert (await client.ask(body(replicas=0), headers(Box_Expires_At=later))).accepted


async def test_the_same_request_id_again_with_the_same_and_with_another_body(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path) as _, RawClient.connect(server) as client:
        first = await client.ask(body(replicas=2, request_id="r"))
        assert (await client.ask(body(replicas=0))).accepted
        again = await client.ask(body(replicas=2, request_id="r"))
        assert (again.accepted, again.target_replicas) == (True, 2)
        assert again.current_replicas == first.current_replicas
        other = await client.ask(body(replicas=3, request_id="r"))
        assert not other.accepted
        assert client.code == "conflict"
        assert "'r' was used for another request: ask with a new request_id" in str(other.error)
        assert (await client.ask(body(replicas=0))).target_replicas == 0


@pytest.mark.parametrize("reply", [b"", b"$KV.box_services.web", b"box.events.web", b"mine"])
async def test_with_nowhere_to_reply_to_nothing_is_done_and_the_refusal_is_counted(
    server: EmbeddedServer, tmp_path: Path, reply: bytes
) -> None:
    async with boxed(server, tmp_path) as (gateway, recorder), RawClient.connect(server) as client:
        client.publish(b"box.scale", body(replicas=3), reply)
        await client.flush()
        assert (await client.ask(body(replicas=0))).target_replicas == 0
        stats = json.loads((await gateway.request("$SRV.STATS.box")).data)
        why = "reply subject is not an inbox" if reply else "no reply subject"
        assert stats["endpoints"][0]["data"] == {why: 1}
        assert recorder.events == []
        services = await jetstream(gateway).stream_info("KV_box_services")
        assert services.state.messages == 0


async def test_frames_that_are_hostile_on_every_subject_stop_nothing(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    subjects = (
        b"box.scale",
        b"box.instances",
        b"box.stats.box-a",
        b"box.stats.\xff",
        b"box.events.web",
        b"$KV.box_services.web2",
        b"$KV.box_slots.nonsense",
        b"$KV.box_slots.web.99",
        b"$KV.box_hosts.box-z",
        b"$SRV.PING",
        b"$SRV.\xff",
    )
    async with boxed(server, tmp_path) as _, RawClient.connect(server) as client:
        assert (await client.ask(body(replicas=1))).accepted
        for subject in subjects:
            for data in (b"", b"\xff\xfe", b"[" * 50_000, b"{}", b'{"a":{"cpu_percent":"x"}}'):
                client.publish(subject, data)
                client.publish(subject, data, b"_INBOX.raw.x")
                client.publish(subject, data, b"_INBOX.raw.x", b"NATS/1.0\r\n\xff\r\n\r\n")
        await client.flush()

        async def good() -> bool:
            async with RawClient.connect(server) as fresh:
                answer = await fresh.ask(body(replicas=1))
                return answer.accepted and answer.current_replicas == 1

        await eventually(good)


async def test_instances_can_be_paged_and_bad_pages_are_refused(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path) as (gateway, _):
        for data, said in (
            (b'{"service":3}', "field `service`"),
            (b'{"offset":-1}', "field `offset`"),
            (b"nonsense", "not JSON"),
        ):
            answer = json.loads((await gateway.request("box.instances", data)).data)
            assert said in answer["error"]
            assert (answer["total"], answer["instances"], answer["hosts"]) == (0, [], {})
        empty = json.loads((await gateway.request("box.instances")).data)
        assert (empty["total"], empty["error"]) == (0, None)
