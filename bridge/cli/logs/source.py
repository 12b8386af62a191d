"""One log that is read part by part: the lines that have come, and the place to go on from."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final

from msgspec import Struct

from bridge.log_protocol import LogChunk, LogRead, LogsRequest, LogsResponse, Stream

_LONGEST: Final = 256 * 1024  # bytes of a line; a longer one is several

Ask = Callable[[LogsRequest], Awaitable[LogsResponse]]
"""Asks the Box of one host, or reads the files of this host."""


class Line(Struct, frozen=True):
    """A line and when it had been written, in nanoseconds since 1970."""

    instance_id: str
    stream: Stream
    at: int
    data: bytes


class Source:
    """One log of one instance. `ask` reaches its host; `tail` and `since` say where it begins."""

    def __init__(
        self,
        instance_id: str,
        stream: Stream,
        ask: Ask,
        *,
        tail: int | None = None,
        since: datetime | None = None,
    ) -> None:
        self.instance_id = instance_id
        self.stream = stream
        self.ask = ask
        self.lines: deque[Line] = deque()
        self.caught_up = False
        self.ended = False
        self._read = LogRead(instance_id=instance_id, stream=stream, tail=tail, since=since)
        self._part = b""  # of a line whose end has not come
        self._part_at = 0

    @property
    def wants_more(self) -> bool:
        """Whether its next part must come before a line of another source is the next one."""
        return not (self.lines or self.caught_up)

    def next_read(self) -> LogRead:
        """The request for its next part."""
        return self._read

    def take(self, chunk: LogChunk) -> None:
        """Take over the lines of a part."""
        self._read = LogRead(instance_id=self.instance_id, stream=self.stream, position=chunk.next)
        self.caught_up = not chunk.more
        self.ended = chunk.ended and not chunk.more
        positions = [position for position, _ in chunk.marks]
        at = chunk.position
        for piece in _pieces(chunk.data):
            index = min(bisect_right(positions, at), len(positions) - 1)
            at += len(piece)
            self._add(piece, chunk.marks[index][1] if index >= 0 else 0)
        if self.ended:
            self.finish()

    def end(self) -> None:
        """Nothing more of it is wanted."""
        self.lines.clear()
        self._part = b""
        self.caught_up = self.ended = True

    def finish(self) -> None:
        """The line that has begun is whole if all was read."""
        if self._part and self.caught_up:
            self.lines.append(Line(self.instance_id, self.stream, self._part_at, self._part))
            self._part = b""

    def _add(self, piece: bytes, at: int) -> None:
        self._part_at = self._part_at if self._part else at
        self._part += piece
        if self._part.endswith(b"\n") or len(self._part) >= _LONGEST:
            line = self._part.removesuffix(b"\n")
            self._part = b""
            self.lines.append(Line(self.instance_id, self.stream, self._part_at, line))


def _pieces(data: bytes) -> list[bytes]:
    """`data` cut after each line feed; a carriage return ends no line."""
    *whole, rest = data.split(b"\n")
    return [line + b"\n" for line in whole] + ([rest] if rest else [])
