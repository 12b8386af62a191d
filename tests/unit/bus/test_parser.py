"""Reading the NATS protocol: any cut of the bytes, any bytes a peer can send."""

from __future__ import annotations

import asyncio
from collections import Counter

import nats.errors
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.core.nats_client import FrameRefused, GuardedClient
from bridge.bus.jetstream.ack_subject import AckSubject, parse_position
from bridge.bus.jetstream.follower import _Run
from bridge.observe import Metrics
from bridge.settings import NatsConfig

subjects = st.binary(min_size=1, max_size=12).filter(
    lambda raw: not any(byte in raw for byte in b" \t\r\n")
)
payloads = st.binary(max_size=40)
headers = st.one_of(
    st.just(b""),
    st.binary(min_size=1, max_size=30).map(lambda raw: b"NATS/1.0\r\n" + raw + b"\r\n\r\n"),
    st.binary(min_size=1, max_size=30),
)


class Reader:
    """A client that reads bytes from nowhere and keeps what it was given."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.messages: list[Message] = []
        self.client = GuardedClient(lambda kind: self.counts.update([kind]))
        self.client.handlers[7] = self.messages.append

    async def read(self, *chunks: bytes) -> None:
        for chunk in chunks:
            await self.client._ps.parse(chunk)


def frame(subject: bytes, payload: bytes, *, reply: bytes = b"", head: bytes = b"") -> bytes:
    middle = reply + b" " if reply else b""
    if head:
        sizes = b"%d %d" % (len(head), len(head) + len(payload))
        return b"HMSG %s 7 %s%s\r\n%s%s\r\n" % (subject, middle, sizes, head, payload)
    return b"MSG %s 7 %s%d\r\n%s\r\n" % (subject, middle, len(payload), payload)


@given(
    st.lists(st.tuples(subjects, payloads, st.just(b"") | subjects, headers), max_size=6), st.data()
)
async def test_any_cut_of_any_frames_gives_the_same_messages(
    frames: list[tuple[bytes, bytes, bytes, bytes]], data: st.DataObject
) -> None:
    stream = b"".join(frame(s, p, reply=r, head=h) for s, p, r, h in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reader = Reader()
    await reader.read(*(stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)))
    assert [m.data for m in reader.messages] == [payload for _, payload, _, _ in frames]
    for message, (subject, _, reply, _) in zip(reader.messages, frames, strict=True):
        assert message.subject == subject.decode(errors="backslashreplace")
        assert message.reply == reply.decode(errors="backslashreplace")
        assert isinstance(dict(message.headers), dict)  # parsing never raises
        assert message.status >= 0


async def test_a_subject_that_is_not_utf8_comes_as_text_that_no_subject_has() -> None:
    reader = Reader()
    await reader.read(frame(b"box.\xff\xfe", b"x"), frame(b"box.a\x0bb", b"y"))
    assert [m.subject for m in reader.messages] == ["box.\\xff\\xfe", "box.a\x0bb"]


@pytest.mark.parametrize(
    ("raw", "malformed", "status", "found"),
    [
        (b"NATS/1.0\r\nA: 1\r\nB:2\r\n\r\n", False, 0, {"A": "1", "B": "2"}),
        (b"NATS/1.0 503\r\n\r\n", False, 503, {}),
        (b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 3\r\n\r\n", False, 100, None),
        (b"NATS/1.0\r\nno colon\r\n\r\n", True, 0, None),
        (b"NATS/1.0\r\n\xff: x\r\nA: 1\r\n\r\n", True, 0, {"A": "1"}),
        (b"NATS/1.0\r\nA: \xff\r\n\r\n", True, 0, {}),
        (b"NATS/1.0\r\n: x\r\n\r\n", True, 0, None),
        (b"HTTP/1.1 200 OK\r\n\r\n", True, 0, {}),
        (b"", False, 0, {}),
    ],
)
def test_headers_are_read_as_far_as_they_can_be(
    raw: bytes, malformed: bool, status: int, found: dict[str, str] | None
) -> None:
    message = Message("s", "", b"", raw)
    assert message.malformed is malformed
    assert message.status == status
    if found is not None:
        assert message.headers == found


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=12),
            st.tuples(st.text(st.characters(max_codepoint=127)), st.text(max_size=8)).map(
                lambda pair: f"{pair[0]}:{pair[1]}".encode()
            ),
        ),
        max_size=4,
    )
)
def test_headers_that_are_ascii_are_read_as_any_others_are(lines: list[bytes]) -> None:
    block = b"\r\n".join(lines)
    quick = Message("s", "", b"", b"NATS/1.0\r\n" + block + b"\r\n\r\n")
    plain = Message("s", "", b"", b"NATS/1.0\r\n")
    assert quick.headers == plain._parse_lines(block)
    assert quick.malformed == plain._malformed


@given(st.one_of(st.binary(max_size=20), st.binary(max_size=9).map(lambda x: b"NATS/1.0" + x)))
def test_the_status_needs_no_headers(raw: bytes) -> None:
    first = raw.partition(b"\r\n")[0]
    plain = first[9:12] if first.startswith(b"NATS/1.0") else b""
    assert Message("s", "", b"", raw).status == (int(plain) if plain.isdigit() else 0)


async def test_a_handler_that_fails_is_counted_and_the_next_message_is_read() -> None:
    reader = Reader()

    def fail(message: Message) -> None:
        raise ValueError("a bug")

    reader.client.handlers[7] = fail
    await reader.read(frame(b"a", b"1"))
    reader.client.handlers[7] = reader.messages.append
    await reader.read(frame(b"a", b"2"))
    assert reader.counts["handler_error"] == 1
    assert [m.data for m in reader.messages] == [b"2"]


async def test_a_message_for_an_ended_subscription_is_dropped() -> None:
    reader = Reader()
    del reader.client.handlers[7]
    await reader.read(frame(b"a", b"1"))
    assert not reader.counts


async def test_a_late_pong_does_no_harm() -> None:
    reader = Reader()
    await reader.read(b"PONG\r\n")
    import asyncio

    given_up: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    given_up.cancel()
    reader.client._pongs.append(given_up)
    await reader.read(b"PONG\r\n", b"+OK\r\n")
    assert reader.client._pongs == []


@pytest.mark.parametrize(
    "line",
    [
        b"WHAT\r\n",
        b"MSG a\r\n",
        b"MSG a x 1\r\n",
        b"HMSG a 7 5\r\n",
        b"INFO {\r\n",
        b"MSG a 7 -\r\n",
        b"MSG a 7 -5\r\n",
        b"HMSG a 7 9 5\r\n",
    ],
)
async def test_an_invalid_frame_makes_the_client_reconnect(line: bytes) -> None:
    reader = Reader()
    with pytest.raises(nats.errors.ProtocolError):
        await reader.read(line)


async def test_a_line_without_end_is_not_read_for_ever() -> None:
    reader = Reader()
    with pytest.raises(nats.errors.ProtocolError):
        await reader.read(*[b"MSG " + b"a" * 65536] * 20)


@pytest.mark.parametrize(
    ("subject", "data", "headers"),
    [
        ("s", b"x" * (1024 * 1024 + 1), None),
        ("s", b"x" * 1024 * 1024, {"A": "1"}),
        ("s" * 5000, b"", None),
        ("s", b"", {"A": "1\r\nPUB other 0\r\n"}),
        ("s", b"", {"A:B": "1"}),
    ],
    ids=["payload", "payload-with-headers", "subject", "line-break", "colon"],
)
def test_what_the_server_would_hang_up_on_is_not_sent(
    subject: str, data: bytes, headers: dict[str, str] | None
) -> None:
    client = GuardedClient(lambda kind: None)
    with pytest.raises(FrameRefused):
        client.publish_now(subject, data, headers=headers)
    assert client._pending == []


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("$JS.ACK.BOX_EVENTS.c1.1.42.7.1700000000.3", AckSubject("c1", 42, 7, 1700000000)),
        ("$JS.ACK._.hash.BOX_EVENTS.c1.1.42.7.1700000000.3.x", AckSubject("c1", 42, 7, 1700000000)),
        ("$JS.ACK.S.c1.1.x.7.1.3", None),
        ("_INBOX.1", None),
        ("", None),
        ("$JS.ACK", None),
    ],
)
def test_the_position_is_read_off_the_reply_subject(reply: str, found: AckSubject | None) -> None:
    assert parse_position(reply) == found


numbers = st.integers(0, 2**63).map(str)
parts = st.one_of(numbers, st.sampled_from(["", "x", "-1", "$JS", "ACK", "c1", "other", "1"]))


@given(st.lists(st.lists(parts, max_size=6), max_size=4), st.booleans())
async def test_a_reply_subject_is_compared_as_it_would_be_parsed(
    tails: list[list[str]], domain: bool
) -> None:
    run = _Run(Connection(NatsConfig(), "test", Metrics()), no_op, no_op, asyncio.Event())
    before = "$JS.ACK.d.hash.S" if domain else "$JS.ACK.S"
    after = "4.x" if domain else "4"
    for tail in [["1", "42", "7", "1700", after], *tails, ["1", "43", "8", "1701", after]]:
        reply = ".".join([before, run.name, *tail])
        position = parse_position(reply)  # the plain way
        found = run._locate(reply)
        if position is None or position.consumer != run.name:
            assert found is None
        else:
            assert found == (position.stream_seq, position.consumer_seq, position.time_ns)


def no_op(*_: object) -> None:
    """A callback for messages that never come."""
