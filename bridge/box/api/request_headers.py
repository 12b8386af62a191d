"""What the headers of a request ask for."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final

from msgspec import Struct

from bridge.bus.core.message import Message
from bridge.errors import ProtocolError
from bridge.protocol import decode, parse_time
from bridge.subjects import (
    EXPECTED_REVISION,
    EXPIRES_AT,
    RECORD_VERSION,
    REQUEST_DIGEST,
    REQUEST_INFO,
    TRACEPARENT,
    valid_trace,
)

_MAX_REQUESTER: Final = 128  # characters that are kept of a user's name
_MAX_INFO: Final = 4096  # characters
_NUMBER: Final = re.compile(r"[0-9]{1,18}")

_DIGEST: Final = re.compile(r"[0-9A-Za-z]{0,128}")


def expiry(message: Message) -> datetime | None:
    """The time from which the request must have no effect. Raises ProtocolError if the headers are
    malformed.
    """
    if message.malformed:
        raise ProtocolError("headers", "", "malformed: each must be a line `Name: value`")
    expires = message.headers.get(EXPIRES_AT)
    if not expires:
        return None
    try:
        return parse_time(expires)
    except ProtocolError as exc:
        raise ProtocolError("header", EXPIRES_AT, exc.problem) from exc


class _RequestInfo(Struct):
    user: str = ""
    name_tag: str = ""


def requester(message: Message) -> str:
    """The NATS user that sent the request, as the server names it: the name in its JWT, or else its
    public key or user name. "" if the server does not say.
    """
    text = message.headers.get(REQUEST_INFO, "")
    if not text or len(text) > _MAX_INFO:
        return ""
    try:
        info = decode(_RequestInfo, text.encode())
    except ProtocolError:
        return ""
    return (info.name_tag or info.user)[:_MAX_REQUESTER]


def known_version(message: Message) -> int:
    """The version of the service's record that the caller knows of; 0 if it names none. Raises
    ProtocolError.
    """
    return _number(message, RECORD_VERSION) or 0


def expected_revision(message: Message) -> int | None:
    """The revision that the service must have; None if any will do. Raises ProtocolError."""
    return _number(message, EXPECTED_REVISION)


def _number(message: Message, header: str) -> int | None:
    number = message.headers.get(header)
    if number is None:
        return None
    if _NUMBER.fullmatch(number) is None:
        problem = f"{number[:40]!r} must be what a reply to box.scale had, or left out"
        raise ProtocolError("header", header, problem)
    return int(number)


def digest(message: Message) -> str:
    """What a repeat of the request must have, too; empty if it has none. Raises ProtocolError."""
    value = message.headers.get(REQUEST_DIGEST, "")
    if _DIGEST.fullmatch(value) is None:
        raise ProtocolError("header", REQUEST_DIGEST, "it must be 1 to 128 letters and digits")
    return value


def traceparent(message: Message) -> str:
    """The trace context of the request; empty if it has none, or no valid one."""
    return valid_trace(message.headers.get(TRACEPARENT, ""))


def flag(message: Message, header: str, word: str) -> bool:
    """Whether an optional header has the value `word`. Raises ProtocolError for any other value."""
    value = message.headers.get(header)
    if value is not None and value != word:
        raise ProtocolError("header", header, f"{value[:40]!r} must be {word!r}, or left out")
    return value is not None
