"""The journal: this host's instances and its unpublished events, on its own disk.

SQLite in WAL mode with ``synchronous=FULL``. One thread writes, and puts all waiting changes into
one transaction (group commit). Guarantees:

- An instance's state and the event that reports it are written in one transaction, in the order of
  the calls. After `wait_written` they survive the process and a power failure.
- Changes of one turn of the event loop are written together. An event that the stream has stored is
  deleted a little later, with the next change: publishing it twice does no harm.
- No change is dropped. While the disk is full, changes wait in memory, are retried twice a second,
  and `problem` names the reason.
- An event that can never be stored, or cannot be read, is kept apart. The table of these is
  bounded: the oldest make room, and are counted.
- A damaged journal is kept beside the new one, never deleted; `set_aside` names it. The journal of
  another version is read as far as this version knows it, or else left alone: no Box starts on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from bridge.box.journal.entry import JournalEntry, PendingEvent, UnreadableEvent
from bridge.box.journal.store import (
    DROPPED,
    SET_ASIDE,
    WRITTEN_BY,
    Change,
    JournalStore,
    open_store,
)
from bridge.box.state.records import HostOrder, ServiceRecord, follows
from bridge.errors import JournalError
from bridge.protocol import InstanceEvent, encode
from bridge.version import VERSION

_log = logging.getLogger(__name__)

_RETRY: Final = 0.5  # seconds between writes to a disk that is full
_CLOSE_TIMEOUT: Final = 5.0  # seconds for the last group
_DELETE_DELAY: Final = 0.1  # seconds until stored events are deleted
MAX_REJECTED: Final = 1_000  # events that can never be stored, and are kept
MAX_REJECTED_BYTES: Final = 8 * 2**20  # the same, in bytes of their payloads
_CACHE: Final = 10_000  # written events that are kept in memory for the outbox; about 10 MB


class Journal:
    """See the module. `open` makes it; it belongs to one event loop.

    `new_events` is set whenever events were written to the disk; whoever reads them clears it.
    """

    def __init__(self, store: JournalStore, set_aside: str) -> None:
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._condition = threading.Condition()
        self._queue: list[Change] = []  # the thread's; guarded by the condition
        self._waiting: list[Change] = []  # the loop's, until it hands them to the thread
        self._hand_over_due = False
        self._delete_timer: asyncio.TimerHandle | None = None
        self._closing = False
        self._accepted = 0  # changes, ever
        self._written = 0
        self._progress = asyncio.Event()
        self._failure: JournalError | None = None
        self._problem = ""
        self._unwritten: deque[tuple[int, PendingEvent]] = deque()  # with their number of a change
        self._cache: deque[PendingEvent] = deque()  # the oldest written events, without a gap
        self._number = store.last_number()
        self.set_aside = set_aside or store.facts().get(SET_ASIDE, "")
        self.entries = store.entries()
        self.services = store.services()
        self.orders = store.orders()
        self.last_before_restart = store.last_pending()
        self.backlog = store.backlog()
        self.undelivered = store.undelivered()
        self._rejected = deque(store.rejected_sizes())
        _, self.rejected_because = store.rejected()
        self.rejected_dropped = int(store.facts().get(DROPPED, "0"))
        self._unreadable: set[int] = set()
        self.new_events = asyncio.Event()
        self.new_events.set()
        self._thread = threading.Thread(target=self._run_writer, name="journal", daemon=True)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, path: Path) -> AsyncIterator[Journal]:
        """The journal at `path`. A damaged file is set aside, and a new one is started.

        Raises JournalError if no journal can be kept there, or if another version's file cannot be
        read.
        """
        store, set_aside = await asyncio.to_thread(open_store, path)
        try:
            journal = cls(store, set_aside)
        except BaseException:
            store.close()
            raise
        journal._thread.start()
        journal.set_fact(WRITTEN_BY, VERSION)  # on disk no later than the first event
        try:
            yield journal
        finally:
            await journal._close()

    # ── writing ──────────────────────────────────────────────────────────────────────────

    def put(
        self, entry: JournalEntry, event: InstanceEvent | None = None, *, traceparent: str = ""
    ) -> None:
        """Write the instance's state and the event that reports it, in one transaction."""
        life = entry.life
        self._accept(("instances", (life.info.id,), (life.info.id, encode(entry))))
        if event is not None:
            self._number += 1
            new = PendingEvent(self._number, life.seq, event, traceparent, encode(event))
            row = (new.n, life.info.id, new.seq, new.data, traceparent)
            self._accept(("outbox", (new.n, new.n), row))
            self.backlog += 1
            self._unwritten.append((self._accepted, new))

    def forget(self, instance_id: str) -> None:
        """Delete the entry of an instance that has ended, once every peer that must know does."""
        self._accept(("instances", (instance_id,), None))

    def mark_stored(self, numbers: Sequence[int]) -> None:
        """Delete the events of these ascending numbers: the stream has stored them."""
        self.backlog -= len(numbers)
        for first, last in _runs(numbers):
            self._accept(("outbox", (first, last), None), later=True)

    @property
    def rejected(self) -> int:
        """How many events that can never be stored are kept."""
        return len(self._rejected)

    def reject(self, event: PendingEvent, reason: str) -> None:
        """Keep an event that can never be stored apart from the others, for people to look at."""
        self._reject(
            event.n, event.event.instance_id, event.seq, event.data, event.traceparent, reason
        )

    def _reject(
        self, n: int, instance: str, seq: int, data: bytes, traceparent: str, reason: str
    ) -> None:
        self.rejected_because = reason
        self._rejected.append((n, len(data)))
        self._accept(("rejected", (n,), (n, instance, seq, data, traceparent, reason)))
        kept, dropped = sum(size for _, size in self._rejected), 0
        while len(self._rejected) > MAX_REJECTED or kept > MAX_REJECTED_BYTES:
            oldest, size = self._rejected.popleft()
            self._accept(("rejected", (oldest,), None))
            kept, dropped = kept - size, dropped + 1
        if dropped:
            self.rejected_dropped += dropped
            self.set_fact(DROPPED, str(self.rejected_dropped))

    def _set_aside_event(self, row: UnreadableEvent) -> None:
        """Keep a row of the outbox that cannot be read apart from the others."""
        if row.n not in self._unreadable:  # else it is not deleted yet
            self._unreadable.add(row.n)
            _log.error("an event of %s is kept apart: %s", row.instance, row.reason)
            self._reject(row.n, row.instance, row.seq, row.data, row.traceparent, row.reason)
            self.mark_stored([row.n])

    def keep_service(self, name: str, record: ServiceRecord) -> None:
        """Write the newest known record of a service; an older version is ignored."""
        known = self.services.get(name)
        if known is not None and _is_newer(known.version, record.version):
            return
        self.services[name] = record
        values = (name, record.version, encode(record))
        self._accept(("services", (name,), values))

    def keep_order(self, host: str, order: HostOrder) -> None:
        """Write the newest known order for a host; an older version is ignored."""
        known = self.orders.get(host)
        if known is not None and _is_newer(known.version, order.version):
            return
        self.orders[host] = order
        self._accept(("orders", (host,), (host, encode(order))))

    def set_fact(self, fact: str, value: str) -> None:
        """Write a fact about this host, for reading while the Box cannot answer; "" deletes it."""
        self._accept(("facts", (fact,), (fact, value) if value else None))

    async def wait_written(self) -> None:
        """Return when every change so far is on disk, however long that takes."""
        ticket = self._accepted
        self._hand_over()
        while self._written < ticket:
            await self._progress.wait()

    @property
    def problem(self) -> str:
        """Why changes cannot be written now; empty while they can."""
        return self._problem

    @property
    def unwritten_since(self) -> datetime | None:
        """The time of the oldest event that is not on disk; None if all are. For any thread."""
        try:
            return self._unwritten[0][1].event.timestamp
        except IndexError:
            return None

    async def watch(self) -> None:
        """Raise JournalError once the journal can never be written again."""
        while self._failure is None:
            await self._progress.wait()
        raise self._failure

    # ── reading ──────────────────────────────────────────────────────────────────────────

    async def pending(self, after: int, limit: int) -> list[PendingEvent]:
        """The first `limit` events after number `after` that the stream has not stored.

        Events that were written lately come from memory: to read and decode them again would cost
        as much as writing them did, and delay a single event by 0.2 ms.
        """
        cache = self._cache
        while cache and cache[0].n <= after:
            cache.popleft()
        if cache and cache[0].n == after + 1:
            return list(itertools.islice(cache, limit))
        while rows := await asyncio.to_thread(self._store.pending, after, limit):
            events = [row for row in rows if isinstance(row, PendingEvent)]
            for row in rows:
                if isinstance(row, UnreadableEvent):
                    self._set_aside_event(row)
            if events:
                return events
            after = rows[-1].n
        return []

    # ── the writer's thread ──────────────────────────────────────────────────────────────

    def _accept(self, change: Change, *, later: bool = False) -> None:
        """Have the change written at the end of this turn of the loop.

        With `later` it is written with the next change, or alone after a delay.
        """
        self._waiting.append(change)
        self._accepted += 1
        if later:
            if self._delete_timer is None:
                self._delete_timer = self._loop.call_later(_DELETE_DELAY, self._hand_over)
        elif not self._hand_over_due:
            self._hand_over_due = True
            self._loop.call_soon(self._hand_over)

    def _hand_over(self) -> None:
        """Give the waiting changes to the thread."""
        self._hand_over_due = False
        if self._delete_timer is not None:
            self._delete_timer.cancel()
            self._delete_timer = None
        if self._waiting:
            with self._condition:
                self._queue += self._waiting
                self._condition.notify()
            self._waiting.clear()

    def _run_writer(self) -> None:
        """Write until closed. Whatever ends the thread is reported: the Box ends with it."""
        try:
            self._write_groups()
        except BaseException as exc:  # it would end the thread without a word
            problem = f"the thread that writes the journal {self._store.path} has ended: {exc!r}"
            self._report(0, JournalError(problem))

    def _write_groups(self) -> None:
        while True:
            with self._condition:
                while not (self._queue or self._closing):
                    self._condition.wait()
                if not self._queue:
                    return
                group = self._queue[:]
            written = self._write(group)
            with self._condition:
                if written:
                    del self._queue[: len(group)]
                elif self._closing:
                    return
                else:
                    self._condition.wait(_RETRY)

    def _write(self, group: Sequence[Change]) -> bool:
        """Write the group, and report to the loop; whether it was written."""
        failure: JournalError | None = None
        try:
            self._store.apply(group)
        except JournalError as exc:
            failure = exc
        except Exception as exc:  # a thread that died here would leave `wait_written` waiting
            failure = JournalError(f"the journal {self._store.path} cannot be written: {exc!r}")
            failure.__cause__ = exc
        self._report(0 if failure else len(group), failure)
        return failure is None

    def _report(self, written: int, failure: JournalError | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended before the thread
            self._loop.call_soon_threadsafe(self._take_report, written, failure)

    def _take_report(self, written: int, failure: JournalError | None) -> None:
        try:
            self._note(written, failure)
        except Exception as exc:  # the event loop would log it, and go on without the journal
            self._failure = JournalError(f"the journal {self._store.path} has failed: {exc!r}")
            self._failure.__cause__ = exc
            self._wake_waiters()

    def _note(self, written: int, failure: JournalError | None) -> None:
        problem = str(failure or "")
        if problem and problem != self._problem:
            _log.error("%s; %d changes wait", problem, self._accepted - self._written)
        elif self._problem and not problem:
            _log.info("the journal can be written again")
        self._problem = problem
        if failure and not failure.transient:
            self._failure = self._failure or failure
        self._written += written
        while self._unwritten and self._unwritten[0][0] <= self._written:
            _, event = self._unwritten.popleft()
            cache = self._cache
            if not cache or (cache[-1].n + 1 == event.n and len(cache) < _CACHE):
                cache.append(event)
        self._wake_waiters()
        if written:
            self.new_events.set()

    def _wake_waiters(self) -> None:
        """Have each waiter look again; an event that stays set would let it spin."""
        self._progress.set()
        self._progress = asyncio.Event()

    async def _close(self) -> None:
        self._hand_over()
        with self._condition:
            self._closing = True
            self._condition.notify()
        await asyncio.to_thread(self._thread.join, _CLOSE_TIMEOUT)
        lost = len(self._queue)
        self._store.close()
        if lost:
            raise JournalError(
                f"{lost} changes could not be written to {self._store.path}: "
                f"{self._problem or 'the disk did not answer in time'}"
            )


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """The first and the last of each run of consecutive numbers."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    return runs


def _is_newer(known: int, version: int) -> bool:
    """Whether the `known` version replaces `version`: one that no decision reached does not."""
    return known >= version and follows(known, version)
