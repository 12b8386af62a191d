"""A bucket as a typed view that is always current, with compare-and-set writes.

The view is complete while `live` is True; during a resync it keeps the records that it had. Writes
go to the store and come back through the view; an acknowledged write is in the view at once. A
record that cannot be decoded is counted, left out of the view and listed as unreadable, so that its
key does not count as free; each put of it is reported to `on_change`. A value that is no record at
all counts as a deletion.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Generic, Protocol, TypeVar

import nats.js.errors
from msgspec import Struct

from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.jetstream.api import jetstream, jetstream_errors
from bridge.bus.jetstream.follower import Follower
from bridge.bus.jetstream.publish import EXPECTED_SEQ, EXPECTED_SUBJECT_SEQ, store
from bridge.errors import ProtocolError
from bridge.log_limit import LimitedLog
from bridge.protocol import decode, encode

_log = logging.getLogger(__name__)

_OPERATION: Final = "KV-Operation"
_DELETED: Final = ("DEL", "PURGE")
_TIMEOUT: Final = 5.0  # seconds for a write

T = TypeVar("T", bound=Struct)
V = TypeVar("V")

OnChange = Callable[[str, T | None, T | None], None]
"""Called with a key, its old and its new value (None: not there), after each put and delete.

Also called for a put that repeats the value (a renewed lease). Must not block.
"""


class NotARecord(Exception):
    """A value that is no record of its key, and counts as if nothing were there. It stays inside:
    callers of a view get ProtocolError.
    """


class Codec(Protocol[T]):
    """How the values of a bucket are written and read."""

    def encode(self, key: str, value: T) -> bytes:
        """The bytes of `value` under `key`."""

    def decode(self, key: str, data: bytes) -> T:
        """The value under `key`. Raises NotARecord, or ProtocolError for an unreadable record."""


class PlainCodec(Generic[T]):
    """Values as JSON. `check` raises ProtocolError for a value that is invalid under its key."""

    def __init__(self, cls: type[T], check: Callable[[str, T], None]) -> None:
        self._class = cls
        self._check = check

    def encode(self, key: str, value: T) -> bytes:
        return encode(value)

    def decode(self, key: str, data: bytes) -> T:
        value = decode(self._class, data)
        self._check(key, value)
        return value


class Record(Struct, Generic[T], frozen=True):
    """A value and its revision, the stream sequence of the message that holds it."""

    value: T
    revision: int


class KeyValueView(Generic[T]):
    """The view of one bucket; `run` keeps it current. See the module.

    Without a `codec` its values are plain JSON, and `check` is that of PlainCodec. `on_live` is
    called when the view becomes complete, and when it no longer is.
    """

    def __init__(
        self,
        connection: Connection,
        bucket: str,
        cls: type[T],
        *,
        check: Callable[[str, T], None] = lambda key, value: None,
        codec: Codec[T] | None = None,
        on_change: OnChange[T] | None = None,
        on_live: Callable[[bool], None] | None = None,
    ) -> None:
        self.bucket = bucket
        self._connection = connection
        self._codec = codec or PlainCodec(cls, check)
        self._on_change = on_change
        self._on_live = on_live
        self._view: _View[T] = _View()
        self._next: _View[T] | None = None
        self._live = asyncio.Event()
        self._moved = asyncio.Event()
        self._log = LimitedLog(_log)
        self._follower = Follower(
            connection,
            f"KV_{bucket}",
            self.take,
            on_begin=self.begin,
            on_complete=self.complete,
            on_lost=self.lost,
        )
        self._prefix = f"$KV.{bucket}."

    async def run(self) -> None:
        """Keep the view current until cancelled."""
        await self._follower.run()

    # ── reading ──────────────────────────────────────────────────────────────────────────

    @property
    def live(self) -> bool:
        """Whether the view is complete and current."""
        return self._live.is_set()

    @property
    def seq(self) -> int:
        """The sequence of the last message of the bucket that the view has taken."""
        return self._view.seq

    @property
    def unreadable(self) -> Mapping[str, int]:
        """Keys whose value could not be decoded, and their revisions."""
        return self._view.unreadable

    def was_deleted(self, key: str) -> bool:
        """Whether `key` was deleted; False if it never existed, or has expired."""
        return key in self._view.markers

    def get(self, key: str) -> Record[T] | None:
        """The record of `key` in the view; None if there is none."""
        return self._view.records.get(key)

    def revision(self, key: str) -> int:
        """The sequence of the last message of `key`, a value or a deletion; 0 if there is none."""
        return self._view.revision(key)

    def items(self) -> Iterator[tuple[str, Record[T]]]:
        """All keys and records; do not await between them."""
        return iter(self._view.records.items())

    async def wait_live(self) -> None:
        """Return when the view is complete."""
        await self._live.wait()

    async def wait_for(self, seq: int) -> None:
        """Return when the view has reached sequence `seq` of the bucket, or was resynced: a store
        that lost its messages numbers them again from 1.
        """
        view = self._view
        while view is self._view and view.seq < seq:
            self._moved.clear()
            await self._moved.wait()

    async def read(self, key: str) -> Record[T] | None:
        """The record of `key`, read from the store itself; None if it has none.

        Raises BusError if the store does not answer, ProtocolError for an unreadable value.
        """
        subject = self._prefix + key
        with jetstream_errors(subject):
            try:
                raw = await jetstream(self._connection).get_last_msg(f"KV_{self.bucket}", subject)
            except nats.js.errors.NotFoundError:
                return None
        deleted = (raw.headers or {}).get(_OPERATION) in _DELETED
        if deleted:
            return None
        try:
            return Record(self._codec.decode(key, raw.data or b""), raw.seq or 0)
        except NotARecord as exc:
            raise ProtocolError(self.bucket, key, str(exc)) from exc

    def drop(self, key: str) -> None:
        """Remove a record that has expired, as `read` found: the stream does not report expiry."""
        record = self._view.records.pop(key, None)
        if record is not None:
            self._report(key, record, None)

    def forget_expired(self, seq: int) -> None:
        """Forget every record, deletion and unreadable value whose revision is `seq` or below: all
        of them have expired, which the stream does not report. It is not reported to `on_change`.
        """
        self._view.forget(seq)

    def count_failure(self, kind: str) -> None:
        """Count, in the metrics, a write that its caller retries."""
        self._connection.metrics.count(kind)

    # ── writing: each raises what `store` raises ───────────────────────────────────────────

    async def create(self, key: str, value: T) -> int:
        """Write `key`, which must not exist; returns its revision."""
        return await self.update(key, value, self._view.markers.get(key, 0))

    async def update(self, key: str, value: T, revision: int) -> int:
        """Replace `key`, which must still have `revision`; returns the new revision."""
        seq = await self._write(
            key, self._codec.encode(key, value), {EXPECTED_SUBJECT_SEQ: str(revision)}
        )
        self._apply(key, value, seq)
        return seq

    async def put(self, key: str, value: T, *, timeout: float = _TIMEOUT) -> int:
        """Write `key` unconditionally; in a bucket with a ttl this renews the lease."""
        seq = await self._write(key, self._codec.encode(key, value), {}, timeout)
        self._apply(key, value, seq)
        return seq

    async def delete(self, key: str, revision: int) -> None:
        """Delete `key`, which must still have `revision`."""
        headers = {_OPERATION: "DEL", EXPECTED_SUBJECT_SEQ: str(revision)}
        self._apply(key, None, await self._write(key, b"", headers))

    async def compare_and_set(self, key: str, value: T, seq: int) -> int:
        """Write `key` if nothing was written to the whole bucket after `seq`.

        `seq` is the value of `self.seq` at the decision. Returns the new sequence.
        """
        new = await self._write(key, self._codec.encode(key, value), {EXPECTED_SEQ: str(seq)})
        self._apply(key, value, new)
        if self._view.seq == seq:
            self._advance(new)  # no message lies between
        return new

    async def _write(
        self, key: str, data: bytes, headers: dict[str, str], timeout: float = _TIMEOUT
    ) -> int:
        subject, headers_or_none = self._prefix + key, headers or None
        stored = await store(
            self._connection, subject, data, headers=headers_or_none, timeout=timeout
        )
        return stored.seq

    def _apply(self, key: str, value: T | None, seq: int) -> None:
        """Take an acknowledged write into the view before the stream delivers it."""
        if self._next is not None and self._next.revision(key) < seq:
            self._next.set(key, value, seq)
        if self._view.revision(key) < seq:
            old = self._view.records.get(key)
            self._view.set(key, value, seq)
            self._report(key, old, value)

    # ── called by the Follower ──────────────────────────────────────────────────────────────

    def begin(self) -> None:
        self._next = _View()

    def take(self, message: Message, seq: int, time_ns: int) -> None:
        key = message.subject.removeprefix(self._prefix)
        deleted = message.headers.get(_OPERATION) in _DELETED
        value: T | None = None
        readable = True
        if not deleted:
            try:
                value = self._codec.decode(key, message.data)
            except (ProtocolError, NotARecord) as exc:
                readable = isinstance(exc, NotARecord)
                reason = "not a record" if readable else "unreadable record"
                self._connection.metrics.refuse(self.bucket, reason)
                if key not in self._view.unreadable:  # a lease is renewed again and again
                    self._log.report(
                        key,
                        "bucket %s, key %s cannot be read: %s",
                        self.bucket,
                        key,
                        exc,
                        level=logging.ERROR,
                    )
        self.put_in(key, value, seq, readable=readable)

    def put_in(self, key: str, value: T | None, seq: int, *, readable: bool = True) -> None:
        """Take the decoded value of message `seq`: None for a deletion, or if unreadable."""
        view = self._view if self._next is None else self._next
        fresh = view.revision(key) < seq
        old = view.records.get(key)
        if fresh:
            view.set(key, value, seq, readable=readable)
        view.seq = max(view.seq, seq)
        if self._next is None:
            if fresh:
                self._report(key, old, value)
            self._moved.set()

    def complete(self, last_seq: int) -> None:
        if self._next is not None:
            before, self._view, self._next = self._view, self._next, None
            changed = before.unreadable.items() ^ self._view.unreadable.items()
            unclear = {key for key, _ in changed}
            for key in before.records.keys() | self._view.records.keys() | unclear:
                old, new = before.records.get(key), self._view.records.get(key)
                if old != new or key in unclear:
                    self._report(key, old, new.value if new else None)
        self._advance(max(self._view.seq, last_seq))
        self._live.set()
        if self._on_live:
            self._on_live(True)

    def lost(self) -> None:
        if self._live.is_set():
            self._live.clear()
            if self._on_live:
                self._on_live(False)

    def _advance(self, seq: int) -> None:
        self._view.seq = max(self._view.seq, seq)
        self._moved.set()

    def _report(self, key: str, old: Record[T] | None, new: T | None) -> None:
        if self._on_change is not None:
            self._on_change(key, old.value if old else None, new)


class _View(Generic[T]):
    """The records of one run of the Follower."""

    def __init__(self) -> None:
        self.seq = 0
        self.records: dict[str, Record[T]] = {}
        self.markers: dict[str, int] = {}
        self.unreadable: dict[str, int] = {}

    def revision(self, key: str) -> int:
        record = self.records.get(key)
        if record is not None:
            return record.revision
        return self.markers.get(key) or self.unreadable.get(key, 0)

    def forget(self, seq: int) -> None:
        """Remove what has the revision `seq` or a lower one. Each place is in their order."""
        for key, _ in _head(self.records, lambda record: record.revision <= seq):
            del self.records[key]
        for place in (self.markers, self.unreadable):
            for key, _ in _head(place, lambda revision: revision <= seq):
                del place[key]

    def set(self, key: str, value: T | None, seq: int, *, readable: bool = True) -> None:
        for place in (self.records, self.markers, self.unreadable):
            place.pop(key, None)
        if value is not None:
            self.records[key] = Record(value, seq)
        elif readable:
            self.markers[key] = seq
        else:
            self.unreadable[key] = seq


def _head(place: dict[str, V], belongs: Callable[[V], bool]) -> list[tuple[str, V]]:
    """The first items, up to the first value that does not belong to them."""
    return list(itertools.takewhile(lambda item: belongs(item[1]), place.items()))
