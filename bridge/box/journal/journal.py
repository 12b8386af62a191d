"""What this host must not forget, on its own disk: its instances, and what is yet to be told.

SQLite in WAL mode with ``synchronous=FULL``; one thread writes, and takes all that has gathered
into one transaction (group commit). What it promises:

- An instance's state and the event that tells of it are written in one transaction, in the order
  of the calls; after `written` they outlive the process and the machine's power.
- What happens in one turn of the loop is written together. An event that was stored in the stream
  is struck out a little later, with what comes next: telling it once more does no harm.
- Nothing that was given to it is dropped: while the disk is full, changes wait in memory, are
  tried again twice a second, and `problem` says why.
- A damaged journal is kept beside the new one, never deleted (`set_aside` names it). What another
  version wrote is read as far as it is known here, or else left as it is: no Box works beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import sqlite3
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from bridge.box.journal.entry import JournalEntry, PendingEvent
from bridge.box.journal.store import SET_ASIDE, WRITTEN_BY, Change, JournalStore, open_store
from bridge.box.state.records import HostOrder, ServiceRecord
from bridge.errors import JournalError
from bridge.protocol import InstanceEvent, encode
from bridge.version import VERSION

_log = logging.getLogger(__name__)

_RETRY: Final = 0.5  # seconds between tries to write to a disk that is full
_CLOSE_PATIENCE: Final = 5.0  # seconds for the last group
_STRIKE_OUT: Final = 0.1  # seconds until events that were stored are struck out
_AT_HAND: Final = 10_000  # events that are kept in memory for the outbox; about 10 MB


class Journal:
    """See the module. Made by `open`; belongs to one event loop."""

    def __init__(self, store: JournalStore, set_aside: str) -> None:
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._news = threading.Condition()
        self._changes: list[Change] = []  # the thread's
        self._gathered: list[Change] = []  # the loop's, until the thread is given them
        self._giving = False
        self._later: asyncio.TimerHandle | None = None
        self._closing = False
        self._given = 0
        self._kept = 0
        self._moved = asyncio.Event()
        self._failure: JournalError | None = None
        self._problem = ""
        self._unwritten: deque[tuple[int, PendingEvent]] = deque()  # events, with their ticket
        self._at_hand: deque[PendingEvent] = deque()  # the oldest that are written, without a gap
        self._number = store.last_number()
        self.set_aside = set_aside or store.facts().get(SET_ASIDE, "")
        self.entries = store.entries()
        self.services = store.services()
        self.orders = store.orders()
        self.last_before_restart = store.last_pending()
        self.backlog = store.backlog()
        self.undelivered = store.undelivered()
        self.on_written: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._write, name="journal", daemon=True)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, path: Path) -> AsyncIterator[Journal]:
        """The journal at `path`; a damaged one is set aside, and a new one begun.

        Raises JournalError where none can be kept, or where another version's cannot be read.
        """
        store, set_aside = await asyncio.to_thread(open_store, path)
        journal = cls(store, set_aside)
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
        """The instance as it is now, and the event that made it so, in one transaction."""
        life = entry.life
        self._give(("instances", (life.info.id,), (life.info.id, encode(entry))))
        if event is not None:
            self._number += 1
            new = PendingEvent(self._number, life.seq, event, traceparent, encode(event))
            row = (new.n, life.info.id, new.seq, new.data, traceparent)
            self._give(("outbox", (new.n, new.n), row))
            self.backlog += 1
            self._unwritten.append((self._given, new))

    def forget(self, instance_id: str) -> None:
        """The instance has ended, and everybody who must know does."""
        self._give(("instances", (instance_id,), None))

    def mark_stored(self, numbers: Sequence[int]) -> None:
        """These events, which `pending` gave together, are stored in the stream."""
        self.backlog -= len(numbers)
        self._give_later(("outbox", (numbers[0], numbers[-1]), None))

    def keep_service(self, name: str, record: ServiceRecord) -> None:
        """The newest version of a service's record that was seen; an older one is ignored."""
        known = self.services.get(name)
        if known is not None and known.version >= record.version:
            return
        self.services[name] = record
        values = (name, record.version, encode(record))
        self._give(("services", (name,), values))

    def keep_order(self, host: str, order: HostOrder) -> None:
        """The newest order for a host that was seen; an older one is ignored."""
        known = self.orders.get(host)
        if known is not None and known.version >= order.version:
            return
        self.orders[host] = order
        self._give(("orders", (host,), (host, encode(order))))

    def set_fact(self, fact: str, value: str) -> None:
        """A fact about this host, for whoever looks while the Box cannot answer; "" removes it."""
        self._give(("facts", (fact,), (fact, value) if value else None))

    async def wait_written(self) -> None:
        """Return when everything given so far is on disk, however long that takes."""
        ticket = self._given
        self._hand_over()
        while self._kept < ticket:
            await self._moved.wait()

    @property
    def problem(self) -> str:
        """Why changes cannot be written just now; empty while they can."""
        return self._problem

    @property
    def unwritten_since(self) -> datetime | None:
        """When the oldest event happened that is not on disk; None if all are. For any thread."""
        try:
            return self._unwritten[0][1].event.timestamp
        except IndexError:
            return None

    async def watch(self) -> None:
        """Raise JournalError once the journal is beyond help."""
        while self._failure is None:
            await self._moved.wait()
        raise self._failure

    # ── reading ──────────────────────────────────────────────────────────────────────────

    async def pending(self, after: int, limit: int) -> list[PendingEvent]:
        """The first `limit` events after number `after` that are yet to be told.

        What was written lately is at hand: reading it back, and decoding it, would cost as much
        again as writing it did, and a lone event a fifth of a millisecond on its way.
        """
        fresh = self._at_hand
        while fresh and fresh[0].n <= after:
            fresh.popleft()
        if fresh and fresh[0].n == after + 1:
            return list(itertools.islice(fresh, limit))
        return await asyncio.to_thread(self._store.pending, after, limit)

    # ── the thread ───────────────────────────────────────────────────────────────────────

    def _give(self, change: Change) -> None:
        """Have the change written at the end of this turn of the loop."""
        self._gathered.append(change)
        self._given += 1
        if not self._giving:
            self._giving = True
            self._loop.call_soon(self._hand_over)

    def _give_later(self, change: Change) -> None:
        """Have it written with what comes next, or alone if nothing does."""
        self._gathered.append(change)
        self._given += 1
        if self._later is None:
            self._later = self._loop.call_later(_STRIKE_OUT, self._hand_over)

    def _hand_over(self) -> None:
        """Give the thread what has gathered."""
        self._giving = False
        if self._later is not None:
            self._later.cancel()
            self._later = None
        if self._gathered:
            with self._news:
                self._changes += self._gathered
                self._news.notify()
            self._gathered.clear()

    def _write(self) -> None:
        while True:
            with self._news:
                while not (self._changes or self._closing):
                    self._news.wait()
                if not self._changes:
                    return
                group = self._changes[:]
            problem = self._try(group)
            with self._news:
                if not problem:
                    del self._changes[: len(group)]
                elif self._closing:
                    return
                else:
                    self._news.wait(_RETRY)

    def _try(self, group: Sequence[Change]) -> str:
        """Why the group could not be written; empty if it was."""
        problem, fatal = "", None
        try:
            self._store.apply(group)
        except sqlite3.OperationalError as exc:  # full, read-only, an I/O error: may pass
            problem = f"the journal {self._store.path} cannot be written: {exc}"
        except sqlite3.Error as exc:
            problem = f"the journal {self._store.path} is damaged: {exc}"
            fatal = JournalError(problem)
        with contextlib.suppress(RuntimeError):  # the loop has ended before the thread
            self._loop.call_soon_threadsafe(
                self._tell, 0 if problem else len(group), problem, fatal
            )
        return problem

    def _tell(self, written: int, problem: str, fatal: JournalError | None) -> None:
        if problem and problem != self._problem:
            _log.error("%s; %d changes wait", problem, self._given - self._kept)
        elif self._problem and not problem:
            _log.info("the journal can be written again")
        self._problem = problem
        self._failure = self._failure or fatal
        self._kept += written
        while self._unwritten and self._unwritten[0][0] <= self._kept:
            _, event = self._unwritten.popleft()
            fresh = self._at_hand
            if not fresh or (fresh[-1].n + 1 == event.n and len(fresh) < _AT_HAND):
                fresh.append(event)
        self._moved.set()
        self._moved = asyncio.Event()
        if written:
            self.on_written()

    async def _close(self) -> None:
        self._hand_over()
        with self._news:
            self._closing = True
            self._news.notify()
        await asyncio.to_thread(self._thread.join, _CLOSE_PATIENCE)
        lost = len(self._changes)
        self._store.close()
        if lost:
            raise JournalError(
                f"{lost} changes could not be written to {self._store.path}: "
                f"{self._problem or 'it did not answer in time'}"
            )
