"""Parts of logs for readers: from the files of an instance, or from rows that its engine printed.

A part costs what it has, however long the log is.
"""

from __future__ import annotations

import os
import re
import threading
from bisect import bisect_left
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from bridge.box.runtimes.log_times import LogTimes, Mark
from bridge.box.runtimes.logs import older_file
from bridge.log_protocol import LogChunk, LogRead
from bridge.private_files import opened
from bridge.protocol import parse_time

MOST_MARKS: Final = 1000  # of one part
_BLOCK: Final = 64 * 1024  # bytes that are searched at once for the last lines
_SEARCHED: Final = 64 * 2**20  # bytes that are searched at most
_ROW: Final = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d) ?")

rotating: Final = threading.Lock()
"""Held while a log is rotated, and while one is read: a reader sees it before or after."""


class _Files:
    """The files of one log, oldest first, each with the position of its first byte."""

    def __init__(self, log: Path) -> None:
        older: list[Path] = []
        while (file := older_file(log, len(older) + 1)).exists():
            older.append(file)
        self.times = LogTimes.read(log, [_size(file) for file in older])
        self.end = self.times.base + _size(log)
        starts = [self.times.base, *self.times.older]
        self._files = [*zip(starts, [log, *older], strict=True)][::-1]
        self.start = self._files[0][0]
        self.exists = bool(older) or log.exists()

    def read(self, position: int, limit: int) -> bytes:
        """At most `limit` bytes from `position` on, up to a gap."""
        data = b""
        for start, file in self._files:
            at = position + len(data)
            if start <= at:
                data += _read(file, at - start, limit - len(data))
        return data

    def next_start(self, position: int) -> int:
        """`position`, or where the next file begins if it lies in a gap."""
        for start, file in self._files:
            if position < start:
                return start
            if position < start + _size(file):
                return position
        return self.end

    def tail(self, count: int) -> int:
        """The position of the line that is `count` lines before the end."""
        if not count:
            return self.end
        at, lines = self.end, 0
        first = True
        while at > self.start and self.end - at < _SEARCHED:
            begin = max(self.start, at - _BLOCK)
            block = self.read(begin, at - begin)
            end = len(block) - 1 if first and block.endswith(b"\n") else len(block)
            first = False
            while (found := block.rfind(b"\n", 0, end)) >= 0:
                lines += 1
                if lines == count:
                    return begin + found + 1
                end = found
            at = begin
        return at


def read_files(directory: Path, read: LogRead, limit: int, now: int, *, ended: bool) -> LogChunk:
    """The part that `read` asks for, of at most `limit` bytes; empty where there is no log. `now`
    is the time in nanoseconds.
    """
    with rotating:
        files = _Files(directory / f"{read.stream}.log")
        times = files.times
        position = files.next_start(min(_begin(files, read), files.end))
        data = files.read(position, limit)
    if position + len(data) < files.end:
        data = data[: data.rfind(b"\n") + 1] or data
    marks = times.between(position, position + len(data))
    if len(marks) > MOST_MARKS:
        marks = marks[:MOST_MARKS]
        data = data[: marks[-1][0] - position]
    end = position + len(data)
    if not files.exists and read.position is not None:
        end = read.position  # of an engine that has just ended, and whose log comes to the files
    if data and (not marks or marks[-1][0] < end):
        marks.append((end, now))
    by_time = times.by_line
    return LogChunk(
        instance_id=read.instance_id,
        stream=read.stream,
        position=position,
        data=data,
        marks=marks,
        next=_time_at(marks, end, read.position or 0) if by_time else end,
        more=end < files.end and bool(data),
        ended=ended,
    )


def _begin(files: _Files, read: LogRead) -> int:
    if read.position is not None:
        by_line = files.times.by_line
        return files.times.position_after(read.position) if by_line else read.position
    begins = [files.start]
    if read.tail is not None:
        begins.append(files.tail(read.tail))
    if read.since is not None:
        begins.append(files.times.position_at(nanoseconds(read.since)))
    return max(begins)


def _time_at(marks: Sequence[Mark], end: int, before: int) -> int:
    """The time of the last line that ends at `end` or earlier; `before` if there is none."""
    index = bisect_left(marks, (end + 1, 0))
    return marks[index - 1][1] if index else before


def read_rows(
    output: bytes, read: LogRead, limit: int, now: int, *, timed: bool, ended: bool
) -> LogChunk:
    """The part that `read` asks for, of the rows that an engine printed; `timed`: each begins with
    its time, and so a position is a time. Otherwise it counts bytes.
    """
    if not timed:
        return _read_plain(output, read, limit, now, ended=ended)
    rows = [_row(row, now) for row in _lines(output)]
    if read.position is not None:
        rows = [row for row in rows if row[0] > read.position]
    elif read.since is not None:
        rows = [row for row in rows if row[0] >= nanoseconds(read.since)]
    if read.position is None and read.tail is not None:
        rows = rows[len(rows) - min(read.tail, len(rows)) :]
    data, marks = b"", list[Mark]()
    for at, line in rows:
        if data and (len(data) + len(line) > limit or len(marks) == MOST_MARKS):
            break
        data += line[:limit]
        marks.append((len(data), at))
    last = marks[-1][1] if marks else (read.position or (now if read.tail == 0 else 0))
    return LogChunk(
        instance_id=read.instance_id,
        stream=read.stream,
        position=0,
        data=data,
        marks=marks,
        next=last,
        more=len(marks) < len(rows),
        ended=ended,
    )


def _read_plain(output: bytes, read: LogRead, limit: int, now: int, *, ended: bool) -> LogChunk:
    begin = 0 if read.position is None else min(read.position, len(output))
    if read.position is None and read.tail is not None:
        lines = _lines(output)
        begin = sum(map(len, lines[: len(lines) - min(read.tail, len(lines))]))
    data = output[begin : begin + limit]
    end = begin + len(data)
    return LogChunk(
        instance_id=read.instance_id,
        stream=read.stream,
        position=begin,
        data=data,
        marks=[(end, now)] if data else [],
        next=end,
        more=end < len(output),
        ended=ended,
    )


def timed_rows(output: bytes, now: int) -> tuple[bytes, list[Mark]]:
    """The lines of an engine's output without their times, and a mark for the end of each."""
    data, marks = bytearray(), list[Mark]()
    for row in _lines(output):
        at, line = _row(row, now)
        data += line
        marks.append((len(data), at))
    return bytes(data), marks


def nanoseconds(at: datetime) -> int:
    """The time in nanoseconds since 1970."""
    return max(0, round(at.timestamp() * 1_000_000)) * 1000


def _row(row: bytes, now: int) -> tuple[int, bytes]:
    """The time of a row and its line."""
    match = _ROW.match(row)
    if match is None:
        return now, row
    seconds = parse_time(match[1].decode() + match[3].decode())
    fraction = int((match[2] or b"0").ljust(9, b"0"))
    return int(seconds.timestamp()) * 10**9 + fraction, row[match.end() :]


def _lines(output: bytes) -> list[bytes]:
    """`output` cut after each line feed; a carriage return ends no line."""
    *whole, rest = output.split(b"\n")
    return [line + b"\n" for line in whole] + ([rest] if rest else [])


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _read(file: Path, offset: int, count: int) -> bytes:
    try:
        with opened(file) as log:
            return os.pread(log, count, offset)
    except OSError:
        return b""
