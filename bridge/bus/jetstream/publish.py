"""Writing to JetStream: each message is acknowledged, refused, or its outcome is unknown."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final

import msgspec
from msgspec import Struct

from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.core.pending_request import PendingRequest
from bridge.errors import (
    BusError,
    Conflict,
    InvalidMessage,
    NoReply,
    NotPermitted,
    StoreRefused,
    TooLarge,
)

EXPECTED_SUBJECT_SEQ: Final = "Nats-Expected-Last-Subject-Sequence"
EXPECTED_SEQ: Final = "Nats-Expected-Last-Sequence"

_BATCH: Final = "Nats-Batch-Id"
_BATCH_SEQ: Final = "Nats-Batch-Sequence"
_BATCH_COMMIT: Final = "Nats-Batch-Commit"

_CONFLICTS: Final = (10071, 10164)  # wrong last sequence, plain and for a subject
_TOO_LARGE: Final = 10054
_PERMANENT: Final = (10003, 10052, 10165, 10166)  # malformed requests, headers and TTLs
_LAST_SEQ: Final = re.compile(r"wrong last sequence: (\d+)")


class Acknowledgement(Struct, frozen=True):
    """An acknowledgement: the message's sequence, and whether it was stored before."""

    seq: int
    duplicate: bool


class _ApiError(Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Ack(Struct):
    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    count: int = 0
    error: _ApiError | None = None


_ACK: Final = msgspec.json.Decoder(_Ack)


async def store(
    connection: Connection,
    subject: str,
    data: bytes,
    *,
    headers: Mapping[str, str] | None = None,
    timeout: float = 5.0,
) -> Acknowledgement:
    """Publish into the stream that takes `subject`, and return when the message is stored.

    Raises Conflict, TooLarge and StoreRefused (not stored), CutOff and NotPermitted (not sent),
    NoResponders (no stream takes the subject), and NoReply: the outcome is unknown, also if another
    subscriber of the subject answered first.
    """
    message = await connection.request(subject, data, headers=headers, timeout=timeout)
    ack = _decoded(connection, message, subject, timeout)
    return Acknowledgement(ack.seq, ack.duplicate)


class Outcomes(Struct, frozen=True):
    """The messages that failed, with what `store` raises; and those whose id the stream had
    already, with the sequence of that message.
    """

    failures: list[tuple[OutgoingMessage, BusError]]
    duplicates: list[tuple[OutgoingMessage, int]]


async def store_each(
    connection: Connection, messages: Iterable[OutgoingMessage], *, timeout: float = 5.0
) -> Outcomes:
    """Store a few messages concurrently, each on its own; returns when each outcome is known."""
    failures: list[tuple[OutgoingMessage, BusError]] = []
    duplicates: list[tuple[OutgoingMessage, int]] = []
    requests: list[tuple[OutgoingMessage, PendingRequest]] = []
    for message in messages:
        try:
            request = connection.ask(
                message.subject, message.data, headers=message.headers, timeout=timeout
            )
        except BusError as exc:
            failures.append((message, exc))
            continue
        requests.append((message, request))
    try:
        for message, request in requests:
            try:
                ack = _decoded(connection, await request.answer(), message.subject, timeout)
            except BusError as exc:
                failures.append((message, exc))
            else:
                if ack.duplicate:
                    duplicates.append((message, ack.seq))
    finally:
        for _, request in requests:
            request.drop()
    return Outcomes(failures, duplicates)


def is_permanent(exc: BusError) -> bool:
    """Whether a message that was refused with `exc` can never be stored as it is.

    Everything else passes: an outage, a full stream, a missing permission.
    """
    if isinstance(exc, StoreRefused):
        return exc.code in _PERMANENT
    return isinstance(exc, TooLarge | InvalidMessage)


def is_about_subject(exc: BusError) -> bool:
    """Whether a message was refused because of its subject, for now: others may be stored."""
    if isinstance(exc, StoreRefused):
        return "per subject" in exc.description
    return isinstance(exc, NotPermitted)


class OutgoingMessage(Struct, frozen=True, kw_only=True):
    """A message to store exactly once. `headers` include a ``Nats-Msg-Id``; messages with the same
    `key` keep their order; `at` is the time of creation.
    """

    subject: str
    data: bytes
    headers: Mapping[str, str]
    key: str
    at: datetime


async def store_batch(
    connection: Connection, messages: Sequence[OutgoingMessage], *, timeout: float = 5.0
) -> None:
    """Store 2 to 1,000 messages in one stream, all or nothing (nats-server 2.12 and newer).

    Raises StoreRefused (this call stored nothing; with code 10201 at least one message had been
    stored before), CutOff, NoResponders, and NoReply (the outcome is unknown).
    """
    batch, last = secrets.token_hex(8), len(messages)
    for number, message in enumerate(messages, start=1):
        headers = {**message.headers, _BATCH: batch, _BATCH_SEQ: str(number)}
        if number == last:
            headers[_BATCH_COMMIT] = "1"
        if number not in (1, last):
            connection.publish(message.subject, message.data, headers=headers)
            continue
        answer = await connection.request(
            message.subject, message.data, headers=headers, timeout=timeout
        )
        if number == last or answer.data:
            ack = _decoded(connection, answer, message.subject, timeout)
            if ack.count != last:
                raise StoreRefused(message.subject, 0, "the server does not know atomic batches")


def _decoded(connection: Connection, message: Message, subject: str, timeout: float) -> _Ack:
    """The acknowledgement. Raises Conflict, TooLarge or StoreRefused for a refusal, and NoReply for
    an answer that is not JetStream's.
    """
    try:
        ack = _ACK.decode(message.data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        ack = _Ack()
    if ack.error is None:
        if not (ack.stream and ack.seq > 0):
            connection.metrics.refuse("store", "not an acknowledgement")
            raise NoReply(subject, timeout)
        return ack
    code, description = ack.error.err_code, ack.error.description
    if code in _CONFLICTS:
        last = _LAST_SEQ.search(description)
        raise Conflict(subject, code, description, int(last[1]) if last else None)
    if code == _TOO_LARGE:
        raise TooLarge(subject, "it exceeds the max_msg_size of its stream")
    raise StoreRefused(subject, code, description)
