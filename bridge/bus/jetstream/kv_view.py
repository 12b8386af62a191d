"""A bucket as a typed, always-current view, and compare-and-set on it.

The view is complete once `live` is True and stays so but for the moments of a resync, during
which it keeps what it had. Writes go to the store and come back through the view; one that was
acknowledged is in the view at once. A record that cannot be read is counted, kept out of the
view and listed as unreadable, so that nobody takes its key for free; each put of it is told.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Generic, TypeVar

import nats.errors
import nats.js.errors
from msgspec import Struct

from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.jetstream.api import jetstream
from bridge.bus.jetstream.follower import Follower
from bridge.bus.jetstream.publish import EXPECTED_SEQ, EXPECTED_SUBJECT_SEQ, mapped, store
from bridge.errors import ProtocolError
from bridge.protocol import decode, encode

_log = logging.getLogger(__name__)

_OPERATION: Final = "KV-Operation"
_DELETED: Final = ("DEL", "PURGE")
_TIMEOUT: Final = 5.0  # seconds for a write

T = TypeVar("T", bound=Struct)

OnChange = Callable[[str, T | None, T | None], None]
"""Told a key, its old value and its new one (None: not there), after each put and delete.

A put that repeats the value (a renewed lease) is told too. Must not block.
"""


class Record(Struct, Generic[T], frozen=True):
    """A value and its revision, the stream sequence of the message that holds it."""

    value: T
    revision: int


class KeyValueView(Generic[T]):
    """The view of one bucket; `run` keeps it current. See the module.

    `check` raises ProtocolError for a value that is not to be believed under its key.
    """

    def __init__(
        self,
        connection: Connection,
        bucket: str,
        cls: type[T],
        *,
        check: Callable[[str, T], None] = lambda key, value: None,
        on_change: OnChange[T] | None = None,
        on_live: Callable[[bool], None] | None = None,
    ) -> None:
        self.bucket = bucket
        self._connection = connection
        self._class = cls
        self._check = check
        self._on_change = on_change
        self._on_live = on_live
        self._view: _View[T] = _View()
        self._next: _View[T] | None = None
        self._live = asyncio.Event()
        self._moved = asyncio.Event()
        self._follower = Follower(connection, f"KV_{bucket}", self)
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
        """The sequence of the bucket's last message that the view holds."""
        return self._view.seq

    @property
    def unreadable(self) -> Mapping[str, int]:
        """Keys whose value could not be decoded, and their revisions."""
        return self._view.unreadable

    def was_deleted(self, key: str) -> bool:
        """Whether somebody deleted `key`; False if it was never there, or has expired."""
        return key in self._view.markers

    def get(self, key: str) -> Record[T] | None:
        """The record of `key`, as far as the view knows."""
        return self._view.records.get(key)

    def revision(self, key: str) -> int:
        """The sequence of the last message of `key`, be it a value or a deletion; 0 if none."""
        return self._view.revision(key)

    def items(self) -> Iterator[tuple[str, Record[T]]]:
        """All keys and records; do not await between them."""
        return iter(self._view.records.items())

    async def wait_live(self) -> None:
        """Return when the view is complete."""
        await self._live.wait()

    async def wait_for(self, seq: int) -> None:
        """Return when the view has reached the bucket's sequence `seq`, or has begun anew: the
        store may have lost what it had, and count anew.
        """
        view = self._view
        while view is self._view and view.seq < seq:
            self._moved.clear()
            await self._moved.wait()

    async def read(self, key: str) -> Record[T] | None:
        """What the store itself has of `key` now, past the view; None if it has nothing.

        Raises BusError when it does not answer, ProtocolError for an unreadable value.
        """
        subject = self._prefix + key
        try:
            raw = await jetstream(self._connection).get_last_msg(f"KV_{self.bucket}", subject)
        except nats.js.errors.NotFoundError:
            return None
        except (nats.errors.Error, TimeoutError) as exc:
            raise mapped(subject, exc) from exc
        deleted = (raw.headers or {}).get(_OPERATION) in _DELETED
        return None if deleted else Record(self._decode(key, raw.data or b""), raw.seq or 0)

    def drop(self, key: str) -> None:
        """Forget a record that `read` says has expired: the view is not told of that."""
        record = self._view.records.pop(key, None)
        if record is not None:
            self._tell(key, record, None)

    # ── writing: each raises what `store` raises ───────────────────────────────────────────

    async def create(self, key: str, value: T) -> int:
        """Write `key`, which must not exist; returns its revision."""
        return await self.update(key, value, self._view.markers.get(key, 0))

    async def update(self, key: str, value: T, revision: int) -> int:
        """Replace `key`, which must still be at `revision`; returns the new revision."""
        seq = await self._write(key, encode(value), {EXPECTED_SUBJECT_SEQ: str(revision)})
        self._apply(key, value, seq)
        return seq

    async def put(self, key: str, value: T, *, timeout: float = _TIMEOUT) -> int:
        """Write `key`, whatever it holds; in a bucket with a ttl this renews the lease."""
        seq = await self._write(key, encode(value), {}, timeout)
        self._apply(key, value, seq)
        return seq

    async def delete(self, key: str, revision: int) -> None:
        """Delete `key`, which must still be at `revision`."""
        headers = {_OPERATION: "DEL", EXPECTED_SUBJECT_SEQ: str(revision)}
        self._apply(key, None, await self._write(key, b"", headers))

    async def compare_and_set(self, key: str, value: T, seq: int) -> int:
        """Write `key` if nothing in the whole bucket was written since `seq`.

        `seq` is what `self.seq` was when the decision was taken. Returns the new sequence.
        """
        new = await self._write(key, encode(value), {EXPECTED_SEQ: str(seq)})
        self._apply(key, value, new)
        if self._view.seq == seq:
            self._advance(new)  # nothing lay between
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
        """Take an acknowledged write into the view before it comes back."""
        if self._next is not None and self._next.revision(key) < seq:
            self._next.set(key, value, seq)
        if self._view.revision(key) < seq:
            old = self._view.records.get(key)
            self._view.set(key, value, seq)
            self._tell(key, old, value)

    # ── the Follower's sink ──────────────────────────────────────────────────────────────

    def begin(self) -> None:
        self._next = _View()

    def take(self, message: Message, seq: int, time_ns: int) -> None:
        key = message.subject.removeprefix(self._prefix)
        deleted = message.headers.get(_OPERATION) in _DELETED
        value: T | None = None
        readable = True
        if not deleted:
            try:
                value = self._decode(key, message.data)
            except ProtocolError as exc:
                readable = False
                self._connection.metrics.refuse(self.bucket, "unreadable record")
                if key not in self._view.unreadable:  # a lease may be renewed so, for ever
                    _log.error("bucket %s, key %s cannot be read: %s", self.bucket, key, exc)
        self.put_in(key, value, seq, readable=readable)

    def put_in(self, key: str, value: T | None, seq: int, *, readable: bool = True) -> None:
        """Take what message `seq` says of `key`, decoded: None for a deletion, or if unreadable."""
        view = self._view if self._next is None else self._next
        fresh = view.revision(key) < seq
        old = view.records.get(key)
        if fresh:
            view.set(key, value, seq, readable=readable)
        view.seq = max(view.seq, seq)
        if self._next is None:
            if fresh:
                self._tell(key, old, value)
            self._moved.set()

    def complete(self, last_seq: int) -> None:
        if self._next is not None:
            before, self._view, self._next = self._view, self._next, None
            changed = before.unreadable.items() ^ self._view.unreadable.items()
            blurred = {key for key, _ in changed}
            for key in before.records.keys() | self._view.records.keys() | blurred:
                old, new = before.records.get(key), self._view.records.get(key)
                if old != new or key in blurred:
                    self._tell(key, old, new.value if new else None)
        self._advance(max(self._view.seq, last_seq))
        self._live.set()
        if self._on_live:
            self._on_live(True)

    def lost(self) -> None:
        if self._live.is_set():
            self._live.clear()
            if self._on_live:
                self._on_live(False)

    def _decode(self, key: str, data: bytes) -> T:
        value = decode(self._class, data)
        self._check(key, value)
        return value

    def _advance(self, seq: int) -> None:
        self._view.seq = max(self._view.seq, seq)
        self._moved.set()

    def _tell(self, key: str, old: Record[T] | None, new: T | None) -> None:
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

    def set(self, key: str, value: T | None, seq: int, *, readable: bool = True) -> None:
        for place in (self.records, self.markers, self.unreadable):
            place.pop(key, None)
        if value is not None:
            self.records[key] = Record(value, seq)
        elif readable:
            self.markers[key] = seq
        else:
            self.unreadable[key] = seq
