"""Reading and writing payloads: `decode` and `encode`."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct

from bridge.errors import ProtocolError
from bridge.protocol.canonical import CANONICAL, Canonical
from bridge.protocol.messages import (
    HostStats,
    InstanceDeregistration,
    InstanceEvent,
    InstanceHealth,
    InstanceRegistration,
    ScaleConfig,
    ScaleRequest,
)
from bridge.protocol.serde_json import rewrite
from bridge.protocol.times import format_time

T = TypeVar("T")

_MAX_REWRITE: Final = 64 * 1024  # bytes of a message that is read again
_QUOTE: Final = b'"'
_HEALTH: Final = (b'"cpu_percent"', b'"memory_bytes"', b'"inflight_requests"', b'"healthy"')
_REFUSALS: Final = (ValueError, msgspec.MsgspecError, RecursionError, OverflowError)
_CURABLE: Final = re.compile("datetime|RFC3339|truncated|hex escape|utf-16|Recursion|Overflow")
"""What msgspec says of a message that serde_json may take: of a time, half a surrogate pair or deep
nesting.
"""

_ENCODER: Final = msgspec.json.Encoder()
_Doubt = Callable[[Any, bytes], bool]
_Reader = tuple[Callable[[bytes], Any], _Doubt | None, Canonical | None]
_READERS: Final[dict[Any, _Reader]] = {}
"""By class: what decodes, what says whether a field may stand twice, and what brings the value into
canonical form; the latter two where there are any.
"""


def decode(cls: type[T], data: bytes) -> T:
    """`data` as a `cls`, with times in UTC and floats rounded to f32.

    Raises ProtocolError, naming the field, for anything that serde_json would not take.
    """
    read, doubt, canonical = _READERS.get(cls) or _reader(cls)
    try:
        if not data.isascii():
            data.decode()  # msgspec skips unknown fields unread
        value = read(data)
        if doubt is not None and doubt(value, data) and len(data) <= _MAX_REWRITE:
            value = read(rewrite(cls, data))
        return value if canonical is None else canonical(value)  # type: ignore[no-any-return]
    except _REFUSALS as exc:
        try:
            if len(data) > _MAX_REWRITE or _CURABLE.search(f"{type(exc).__name__}: {exc}") is None:
                raise _refusal(cls, exc) from exc
            value = read(rewrite(cls, data))
            return value if canonical is None else canonical(value)  # type: ignore[no-any-return]
        except _REFUSALS as again:
            clearer = isinstance(again, msgspec.ValidationError)
            raise _refusal(cls, again if clearer else exc) from exc


def _event_doubt(value: InstanceEvent, data: bytes) -> bool:
    """Whether a field may stand twice. A message with each field once, and no other, has so many
    quotation marks.
    """
    return data.count(_QUOTE) != 24 or not (value.message or b'"message"' in data)


def _registration_doubt(value: InstanceRegistration, data: bytes) -> bool:
    known = 18 + 4 * len(value.metadata)
    return data.count(_QUOTE) != known or not (value.metadata or b'"metadata"' in data)


def _deregistration_doubt(value: InstanceDeregistration, data: bytes) -> bool:
    return data.count(_QUOTE) != 12 or not (value.reason or b'"reason"' in data)


def _health_doubt(value: InstanceHealth, data: bytes) -> bool:
    return data.count(_QUOTE) != 8 or b"-0" in data or any(name not in data for name in _HEALTH)


def _doubt_unless_written_alike(value: Struct, data: bytes) -> bool:
    """A message that is what msgspec writes for its value has each field once, and no other. To
    write it costs far less than `rewrite`, which each request would pay.
    """
    return _ENCODER.encode(value) != data


def _reader(cls: Any) -> _Reader:
    decoder = msgspec.json.Decoder(cls)
    reader = _READERS[cls] = decoder.decode, _DOUBTS.get(cls), CANONICAL.get(cls)
    return reader


def encode(value: Struct | HostStats) -> bytes:
    """`value` as the UTF-8 JSON that serde_json would write for it.

    Raises ProtocolError for a time without an offset, and for text that is not Unicode. Does not
    check ranges: a value whose fields match their types is always valid.
    """
    canonical = CANONICAL.get(type(value))
    try:
        if canonical is not None:
            value = canonical(value)
        data = _ENCODER.encode(value)
    except (UnicodeEncodeError, OverflowError) as exc:
        raise _refusal(type(value), exc) from exc
    # msgspec writes six fraction digits where chrono writes three: in one value of a thousand.
    return _ENCODER.encode(_chrono_times(value)) if b'000Z"' in data else data


_DOUBTS: Final[dict[Any, _Doubt]] = {
    InstanceEvent: _event_doubt,
    InstanceRegistration: _registration_doubt,
    InstanceDeregistration: _deregistration_doubt,
    InstanceHealth: _health_doubt,
    ScaleRequest: _doubt_unless_written_alike,
    ScaleConfig: _doubt_unless_written_alike,
}


def _chrono_times(value: Any) -> Any:
    """`value` as plain JSON types, with times in chrono's format."""

    def walk(node: Any) -> Any:
        if isinstance(node, datetime):
            return format_time(node)
        if isinstance(node, dict):
            return {key: walk(item) for key, item in node.items()}
        if isinstance(node, list):
            return [walk(item) for item in node]
        return node

    return walk(msgspec.to_builtins(value, builtin_types=(datetime,)))


# ── refusals ─────────────────────────────────────────────────────────────────────────────

_AT: Final = re.compile(
    r"^(?P<problem>.*?)(?: - at `(?:key in )?\$\.?(?P<path>[^`]*)`)?$", re.DOTALL
)
_MISSING: Final = re.compile(r"^Object missing required field `([^`]+)`$")


def _refusal(cls: Any, exc: Exception) -> ProtocolError:
    name = getattr(cls, "__name__", str(cls))
    if isinstance(exc, UnicodeDecodeError):
        return ProtocolError(name, "", f"not UTF-8 at byte {exc.start}")
    if isinstance(exc, UnicodeEncodeError):
        return ProtocolError(name, "", f"a text has a character that is not Unicode: {exc.reason}")
    if isinstance(exc, RecursionError):
        return ProtocolError(name, "", "nested too deeply")
    if type(exc) is ValueError:
        return ProtocolError(name, "", str(exc))
    if isinstance(exc, OverflowError):
        return ProtocolError(name, "", "a time lies outside the years 1 to 9999")
    if not isinstance(exc, msgspec.ValidationError):
        return ProtocolError(name, "", f"not JSON: {exc}")
    match = _AT.match(str(exc))
    assert match is not None  # the pattern matches any text
    problem, path = match["problem"], match["path"] or ""
    if missing := _MISSING.match(problem):
        return ProtocolError(name, ".".join(filter(None, (path, missing[1]))), "missing")
    return ProtocolError(name, path, problem[:1].lower() + problem[1:])
