"""A host's report of what its instances use, in as many messages as the server's limit demands.

Up to some thousands of instances it is one message without headers, as the wire contract says. A
longer one is sent in parts, each of which is a report of its own: a reader that knows no parts
reads each as such.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from msgspec import Struct

from bridge.bus.core.message import Message
from bridge.errors import ProtocolError
from bridge.protocol import HostStats, InstanceHealth, encode
from bridge.subjects import STATS_PART

MAX_REPORT: Final = 1024 * 1024  # bytes of one message
_HEADER_ROOM: Final = 1024  # bytes of a message that are not its payload
_MAX_PARTS: Final = 64
_NO_HEADERS: Final[Mapping[str, str]] = {}


def messages(report: HostStats, max_payload: int) -> Iterator[tuple[bytes, Mapping[str, str]]]:
    """The payloads that carry `report`, and their headers."""
    limit = min(max_payload, MAX_REPORT) - _HEADER_ROOM
    data = encode(report)
    if len(data) <= limit:
        yield data, _NO_HEADERS
        return
    # Entries differ in size by a fifth: parts of two thirds of the limit fit.
    count = -(-len(data) * 3 // (limit * 2))
    items = list(report.items())
    size = -(-len(items) // count)
    parts = [dict(items[start : start + size]) for start in range(0, len(items), size)]
    for number, part in enumerate(parts, start=1):
        yield encode(part), {STATS_PART: f"{number}/{len(parts)}"}


class Part(Struct, frozen=True):
    """The place of a message in its report: part `number` of `count`."""

    number: int
    count: int

    @classmethod
    def of(cls, message: Message) -> Part | None:
        """The place that the header names, None if the message is a whole report. Raises
        ProtocolError for an invalid one.
        """
        if not message.raw_headers or (text := message.headers.get(STATS_PART)) is None:
            return None
        number, _, count = text.partition("/")
        valid = text.isascii() and number.isdigit() and count.isdigit() and len(text) <= 5
        if not valid or not 1 <= int(number) <= int(count) <= _MAX_PARTS:
            raise ProtocolError("HostStats", STATS_PART, f"{text[:20]!r} is no part")
        return cls(int(number), int(count))


class PartialReport:
    """The parts of one host's report that have come so far."""

    def __init__(self) -> None:
        self._stats: dict[str, InstanceHealth] = {}
        self._next = 1

    def add(self, part: Part, stats: HostStats) -> HostStats | None:
        """Add a part; the whole report after the last one. Parts come in order: after a gap the
        report is dropped, and the next one replaces it.
        """
        if part.number == 1:
            self._stats, self._next = {}, 1
        if part.number != self._next:
            self._next = 0
            return None
        self._stats.update(stats)
        self._next += 1
        if part.number < part.count:
            return None
        self._next = 0
        return self._stats
