"""Times in the payloads: RFC 3339 as chrono writes and reads it, in UTC."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from bridge.errors import ProtocolError
from bridge.protocol.serde_json import parse_time as parse_chrono_time

Time = Annotated[datetime, Meta(tz=True)]


def now() -> datetime:
    """The wall clock in UTC: for timestamps, never for deadlines."""
    return datetime.now(UTC)


def format_time(value: datetime) -> str:
    """`value` in RFC 3339, in UTC, with 0, 3 or 6 fraction digits, like chrono."""
    value = value.astimezone(UTC).replace(tzinfo=None)
    spec = "microseconds" if value.microsecond % 1000 else "milliseconds"
    return value.isoformat(timespec=spec if value.microsecond else "seconds") + "Z"


def parse_time(text: str) -> datetime:
    """The moment that an RFC 3339 time with an offset names, in UTC. Raises ProtocolError."""
    try:
        return in_utc(msgspec.convert(text, Time))
    except (msgspec.ValidationError, OverflowError):
        try:
            return parse_chrono_time(text)
        except ValueError as exc:
            problem = f"{text[:40]!r} is not RFC 3339 with an offset"
            raise ProtocolError("time", "", problem) from exc


def in_utc(value: datetime) -> datetime:
    """The same moment in UTC. Raises ProtocolError for a time without an offset."""
    if value.tzinfo is UTC:
        return value
    if value.tzinfo is None:
        raise ProtocolError("time", "", f"{value.isoformat()} has no offset: use UTC")
    return value.astimezone(UTC)
