"""When the lines of a log were written, although instances write their logs themselves.

A Box looks at the size of each log twice a second, and notes a mark: by that time the log had so
many bytes. Positions count from the first byte that the instance wrote, through every rotation. The
marks are in a file beside the log, so they outlive the Box.
"""

from __future__ import annotations

import contextlib
import os
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bridge.private_files import opened

_RECORD: Final = struct.Struct(">QQ")
_LARGEST: Final = 2**25  # bytes of a file of marks: as many as lines fit into a kept log
_MOST: Final = 4096  # marks of one log; of more, the older half becomes half as dense

Mark = tuple[int, int]
"""A position, and a time in nanoseconds since 1970."""


class LogTimes:
    """The marks of one log. `base` is the position of the first byte of the log's current file, and
    `older` those of its older files, the newest first: a log that grew too fast has gaps.

    With `by_line` each line has a mark of its own: the log was copied from an engine that knows the
    times. Readers of such a log name a position by its time.
    """

    def __init__(self, log: Path) -> None:
        self.file = log.with_name(f"{log.name}.times")
        self.base = 0
        self.older: list[int] = []
        self.by_line = False
        self._positions: list[int] = []
        self._times: list[int] = []
        self._stored = 0  # marks that the file has

    @classmethod
    def read(cls, log: Path, sizes: Sequence[int] = ()) -> LogTimes:
        """The marks of `log`. `sizes` are those of its older files, the newest first."""
        times = cls(log)
        try:
            with opened(times.file) as descriptor:
                data = os.pread(descriptor, _LARGEST, 0)
        except OSError:
            data = b""
        whole = len(data) - len(data) % _RECORD.size
        records = list(_RECORD.iter_unpack(data[:whole]))
        times.base, form = records[0] if records else (sum(sizes), 0)
        times.by_line, known = bool(form & 1), form >> 1
        times.older = [start for start, _ in records[1 : 1 + known]][: len(sizes)]
        for size in sizes[len(times.older) :]:
            times.older.append(max(0, (times.older or [times.base])[-1] - size))
        for position, at in records[1 + known :]:
            times._add(position, at)
        times._stored = len(times._positions) if records else 0
        return times

    def note(self, size: int, at: int) -> None:
        """The current file had `size` bytes at the time `at`. Raises OSError."""
        if not self._add(self.base + size, at):
            return
        if len(self._positions) > _MOST:
            half = len(self._positions) // 2
            self._positions[:half] = self._positions[1:half:2]
            self._times[:half] = self._times[1:half:2]
            self._stored = 0
        self._store()

    def drop(self, count: int, sizes: Sequence[int]) -> None:
        """The current file has lost its first `count` bytes, and the older files have these `sizes`
        now, the newest first. Raises OSError.
        """
        self.base += count
        moved = [self.base - sizes[0], *self.older] if sizes else []
        self.older = moved[: len(sizes)]
        gone = bisect_right(self._positions, min([self.base, *self.older]))
        del self._positions[:gone], self._times[:gone]
        self._stored = 0
        self._store()

    def write(self, marks: Sequence[Mark]) -> None:
        """Write the marks of a log of which each line has one. Raises OSError."""
        self.by_line = True
        for position, at in marks:
            self._add(position, at)
        self._store()

    def between(self, start: int, end: int) -> list[Mark]:
        """The marks for the bytes from `start` up to `end`."""
        first = bisect_right(self._positions, start)
        last = bisect_left(self._positions, end) + 1
        return list(zip(self._positions[first:last], self._times[first:last], strict=True))

    def position_at(self, at: int) -> int:
        """The position from which on bytes may have been written at or after `at`."""
        index = bisect_left(self._times, at)
        return self._positions[index - 1] if index else 0

    def position_after(self, at: int) -> int:
        """The position after the lines whose time is `at` or earlier."""
        index = bisect_right(self._times, at)
        return self._positions[index - 1] if index else 0

    def _add(self, position: int, at: int) -> bool:
        last = self._positions[-1] if self._positions else 0
        if position <= last:
            return False
        self._positions.append(position)
        self._times.append(max(at, self._times[-1] if self._times else 0))
        return True

    def _store(self) -> None:
        """Append the new marks, or write all if earlier ones have changed."""
        fresh = zip(self._positions[self._stored :], self._times[self._stored :], strict=True)
        data = b"".join(_RECORD.pack(*mark) for mark in fresh)
        if self._stored and self.file.exists():
            with opened(self.file, os.O_WRONLY | os.O_APPEND) as descriptor:
                os.write(descriptor, data)
        else:
            part = self.file.with_name(f"{self.file.name}.part")
            part.unlink(missing_ok=True)
            with contextlib.ExitStack() as stack:
                stack.callback(part.unlink, missing_ok=True)
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
                descriptor = stack.enter_context(opened(part, flags))
                form = self.by_line | len(self.older) << 1
                head = [(self.base, form), *((start, 0) for start in self.older)]
                os.write(descriptor, b"".join(_RECORD.pack(*each) for each in head) + data)
                part.replace(self.file)
        self._stored = len(self._positions)
