"""JetStream's buckets, in memory: sequences, compare-and-set, a ttl; and losing all of it.

What each write must meet is what the server checks: the key's last sequence, or the bucket's.
A bucket that was lost comes back empty, or as it once was, with the sequence that it then had.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from msgspec import Struct

from bridge.bus.jetstream.kv_view import Record
from bridge.bus.jetstream.publish import EXPECTED_SEQ, EXPECTED_SUBJECT_SEQ
from bridge.errors import Conflict
from bridge.protocol import decode

_CONFLICT: Final = 10071


class Entry(Struct, frozen=True):
    """A message of a bucket; `value` is None for a deletion."""

    key: str
    seq: int
    value: Any
    at: float


OnWrite = Callable[[str, Any, Any], None]
"""Told a key, what the store had of it and what it has now, at the moment of the write."""


class Bucket:
    """One bucket. `planted` names a defect to put in, for the tests of the simulation."""

    def __init__(
        self, name: str, cls: type[Struct], on_write: OnWrite, ttl: float = 0.0, planted: str = ""
    ) -> None:
        self.name = name
        self.seq = 0
        self.last: dict[str, Entry] = {}
        self.log: list[Entry] = []
        self.writer = ("", "")
        self.losses = 0
        self._class = cls
        self._on_write = on_write
        self._ttl = ttl
        self._blind = planted == f"{name}-without-cas"
        self._kept: tuple[int, dict[str, Entry]] = (0, {})

    def get(self, key: str, now: float) -> Any:
        """What the store has of `key`."""
        entry = self.last.get(key)
        if entry is not None and self._ttl and now - entry.at >= self._ttl:
            del self.last[key]
            return None
        return None if entry is None else entry.value

    def read(self, key: str, now: float) -> Record[Any] | None:
        """The same with its revision; None if there is no value."""
        value = self.get(key, now)
        return None if value is None else Record(value, self.last[key].seq)

    def write(
        self,
        key: str,
        data: bytes,
        headers: Mapping[str, str],
        now: float,
        writer: tuple[str, str] = ("", ""),
    ) -> int:
        """The sequence of the write. Raises Conflict. `writer` is the host, and its id."""
        before = self.get(key, now)
        if not self._blind:
            self._expect(key, headers)
        value = decode(self._class, data) if data else None
        self.seq += 1
        entry = Entry(key, self.seq, value, now)
        self.last[key] = entry
        self.log.append(entry)
        self.writer = writer
        self._on_write(key, before, value)
        return self.seq

    def _expect(self, key: str, headers: Mapping[str, str]) -> None:
        last = self.last.get(key)
        subject_seq = last.seq if last else 0
        expected = headers.get(EXPECTED_SUBJECT_SEQ)
        if expected is not None and int(expected) != subject_seq:
            raise Conflict(key, _CONFLICT, "wrong last sequence", subject_seq)
        expected = headers.get(EXPECTED_SEQ)
        if expected is not None and int(expected) != self.seq:
            raise Conflict(key, _CONFLICT, "wrong last sequence", self.seq)

    def snapshot(self, now: float) -> list[Entry]:
        """The last message of each key, in the order of the stream."""
        for key in list(self.last):
            self.get(key, now)
        return sorted(self.last.values(), key=lambda entry: entry.seq)

    def keep(self) -> None:
        """Remember how it stands: what a store may come back as."""
        self._kept = (self.seq, dict(self.last))

    def lose(self, *, older: bool) -> None:
        """Be what was kept last, or empty."""
        self.losses += 1
        self.seq, self.last = (self._kept[0], dict(self._kept[1])) if older else (0, {})
        self.log = list(self.last.values())
