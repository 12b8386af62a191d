"""The journal's file: its schema, what is read from it, and how a damaged one is set aside."""

from __future__ import annotations

import contextlib
import itertools
import logging
import sqlite3
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct, field

from bridge.box.journal.entry import JournalEntry, PendingEvent
from bridge.box.state.records import HostOrder, ServiceRecord
from bridge.errors import ForeignJournal, JournalError, ProtocolError
from bridge.protocol import InstanceEvent, decode
from bridge.settings import Probe, ServiceConfig
from bridge.version import VERSION

_log = logging.getLogger(__name__)

_MIGRATIONS: Final = (
    """
    CREATE TABLE instances (id TEXT PRIMARY KEY, entry BLOB NOT NULL) STRICT;
    CREATE TABLE outbox (
        n INTEGER PRIMARY KEY AUTOINCREMENT,
        instance TEXT NOT NULL,
        seq INTEGER NOT NULL,
        event BLOB NOT NULL,
        traceparent TEXT NOT NULL
    ) STRICT;
    CREATE TABLE services (
        name TEXT PRIMARY KEY, version INTEGER NOT NULL, record BLOB NOT NULL
    ) STRICT;
    CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    """,
    "CREATE TABLE orders (host TEXT PRIMARY KEY, record BLOB NOT NULL) STRICT;",
)
"""Each brings the schema one version further; ``user_version`` counts them."""

JOURNAL: Final = "journal.db"  # its name in a Box's data_dir

CUT_OFF: Final = "cut_off_since"  # facts about this host, for people
SET_ASIDE: Final = "set_aside"
WRITTEN_BY: Final = "written_by"  # the version of box-bridge that was the last to work with it

Change = tuple[str, tuple[Any, ...], tuple[Any, ...] | None]
"""A table, the key in it, and the row that shall be there; None where it is to go. Of changes of
one key that are applied together only the last is written. A key of the outbox is a first and a
last number: what goes may be many, what is put is one.
"""

_COLUMNS: Final = {"instances": 2, "outbox": 5, "services": 3, "facts": 2, "orders": 2}
_DELETE: Final = {
    "instances": "DELETE FROM instances WHERE id = ?",
    "outbox": "DELETE FROM outbox WHERE n BETWEEN ? AND ?",
    "facts": "DELETE FROM facts WHERE name = ?",
}
_ROWS: Final = (128, 16, 1)  # put by one statement


class _KeptProbe(Probe, frozen=True, kw_only=True, forbid_unknown_fields=False):
    pass


class _KeptService(ServiceConfig, frozen=True, kw_only=True, forbid_unknown_fields=False):
    probe: _KeptProbe = field(default_factory=_KeptProbe)


class _KeptEntry(JournalEntry, frozen=True, kw_only=True):
    """An Entry as it is read: a setting is unknown here because a newer version has it, whose
    journal this one must be able to go on with.
    """

    service: _KeptService


class Snapshot(Struct, frozen=True, kw_only=True):
    """What a journal says of its host, for people: living instances, facts, and the backlog."""

    entries: list[JournalEntry]
    facts: dict[str, str]
    backlog: int
    oldest: datetime | None


def read_snapshot(path: Path) -> Snapshot:
    """Read the journal at `path` while its Box may be at work on it, changing nothing.

    Raises JournalError if there is none, or if it cannot be read.
    """
    try:
        if not path.exists():
            raise JournalError(f"there is no journal at {path}: no Box has worked here")
        store = JournalStore(path, readonly=True)
        try:
            with store.reading():
                backlog = store.pending(0, 1)
                return Snapshot(
                    entries=list(store.entries().values()),
                    facts=store.facts(),
                    backlog=store.backlog(),
                    oldest=backlog[0].event.timestamp if backlog else None,
                )
        finally:
            store.close()
    except (sqlite3.Error, ProtocolError, OSError) as exc:
        raise JournalError(f"the journal {path} cannot be read: {exc}") from exc


def open_store(path: Path) -> tuple[JournalStore, str]:
    """The store at `path`, and where the one went that was damaged, if any.

    Raises JournalError where none can be kept, or where another version's cannot be read.
    """
    set_aside = ""
    try:
        return _checked(path), ""
    except (sqlite3.DatabaseError, ProtocolError) as exc:
        if isinstance(exc, sqlite3.OperationalError):
            raise JournalError(f"the journal {path} cannot be opened: {exc}") from exc
        set_aside = str(_put_aside(path))
        _log.error(
            "the journal %s is damaged (%s): it is kept as %s, and a new one is built from what "
            "runs on this host",
            path,
            exc,
            set_aside,
        )
    try:
        store = _checked(path)
        store.apply([("facts", (SET_ASIDE,), (SET_ASIDE, set_aside))])
    except sqlite3.Error as exc:
        raise JournalError(f"no journal can be kept at {path}: {exc}") from exc
    return store, set_aside


def _checked(path: Path) -> JournalStore:
    """The store at `path`, found whole and brought to the newest schema."""
    store = JournalStore(path)
    try:
        store.check()
        store.migrate()
        with store.reading():
            store.entries()
            store.services()
            store.orders()
            store.pending(0, 1)
    except BaseException:
        store.close()
        raise
    return store


def _put_aside(path: Path) -> Path:
    """Rename the journal and what belongs to it; returns its new name."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    kept = path.with_name(f"{path.name}.damaged-{stamp}")
    for suffix in ("-wal", "-shm", ""):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(kept.with_name(kept.name + suffix))
    return kept


def _read(entry: bytes) -> JournalEntry:
    return msgspec.convert(decode(_KeptEntry, entry), JournalEntry, from_attributes=True)


class JournalStore:
    """The SQLite file. Used by one thread at a time, but for reads beside the writer's."""

    def __init__(self, path: Path, *, readonly: bool = False) -> None:
        self.path = path
        self._readonly = readonly
        self._db = self._connect()
        try:
            self._reads = self._connect()
        except sqlite3.Error:
            self._db.close()
            raise

    def _connect(self) -> sqlite3.Connection:
        mode = "ro" if self._readonly else "rwc"
        if self._readonly and not self.path.with_name(f"{self.path.name}-wal").exists():
            # No Box is at work: SQLite would make that file, or fail where it may not.
            mode += "&immutable=1"
        db = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode={mode}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=5.0,
        )
        try:
            if not self._readonly:
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("PRAGMA synchronous=FULL")  # a commit means: on the disk
        except sqlite3.Error:
            db.close()
            raise
        return db

    def check(self) -> None:
        """Raise sqlite3.DatabaseError if the file is damaged."""
        found = [row[0] for row in self._db.execute("PRAGMA quick_check(5)")]
        if found != ["ok"]:
            raise sqlite3.DatabaseError("; ".join(map(str, found)))

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Raise ForeignJournal for a row that says what this version cannot read, if another one
        was the last to write here. That is no damage, for which ProtocolError is raised.
        """
        try:
            yield
        except ProtocolError as exc:
            writer = self.facts().get(WRITTEN_BY, VERSION)
            # What is no JSON no version has written.
            if writer == VERSION or not isinstance(exc.__cause__, msgspec.ValidationError):
                raise
            problem = f"{writer}; this one, {VERSION}, cannot read {exc}"
            raise ForeignJournal(str(self.path), problem) from exc

    def migrate(self, migrations: Sequence[str] = _MIGRATIONS) -> None:
        """Bring the schema forward. Raises ForeignJournal if a newer version wrote it."""
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > len(migrations):
            raise ForeignJournal(
                str(self.path), f"a newer one, schema {version}; this one knows {len(migrations)}"
            )
        for number, script in enumerate(migrations[version:], start=version + 1):
            self._db.executescript(f"BEGIN; {script}; PRAGMA user_version={number}; COMMIT;")

    def apply(self, changes: Sequence[Change]) -> None:
        """All of `changes` in one transaction, or none.

        Many rows go into one statement: at each one the thread lets go of the interpreter, and gets
        it back when the event loop is done with what it does, or after 5 ms.
        """
        tables: dict[str, dict[tuple[Any, ...], tuple[Any, ...] | None]] = {}
        for table, key, row in changes:
            tables.setdefault(table, {})[key] = row
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for table, rows in tables.items():
                self._put(table, [row for row in rows.values() if row is not None])
                for key in [key for key, row in rows.items() if row is None]:
                    self._db.execute(_DELETE[table], key)
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # a full disk has ended it already
                self._db.execute("ROLLBACK")
            raise

    def _put(self, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
        place, values = 0, f"({', '.join('?' * _COLUMNS[table])})"
        for size in _ROWS:
            sql = f"INSERT OR REPLACE INTO {table} VALUES {', '.join([values] * size)}"  # noqa: S608
            while len(rows) - place >= size:
                self._db.execute(sql, [*itertools.chain.from_iterable(rows[place : place + size])])
                place += size

    def entries(self) -> dict[str, JournalEntry]:
        """The instances that were not forgotten, by id."""
        rows = self._reads.execute("SELECT id, entry FROM instances")
        return {name: _read(entry) for name, entry in rows}

    def services(self) -> dict[str, ServiceRecord]:
        """The newest known record of each service."""
        rows = self._reads.execute("SELECT name, record FROM services")
        return {name: decode(ServiceRecord, record) for name, record in rows}

    def orders(self) -> dict[str, HostOrder]:
        """The newest known order for each host."""
        rows = self._reads.execute("SELECT host, record FROM orders")
        return {host: decode(HostOrder, record) for host, record in rows}

    def facts(self) -> dict[str, str]:
        """What `Journal.state` was told."""
        return dict(self._reads.execute("SELECT name, value FROM facts"))

    def pending(self, after: int, limit: int) -> list[PendingEvent]:
        """The first `limit` events after number `after`, in order."""
        rows = self._reads.execute(
            "SELECT n, seq, event, traceparent FROM outbox WHERE n > ? ORDER BY n LIMIT ?",
            (after, limit),
        )
        return [
            PendingEvent(n, seq, decode(InstanceEvent, event), traceparent, event)
            for n, seq, event, traceparent in rows
        ]

    def backlog(self) -> int:
        """How many events are yet to be told."""
        return int(self._reads.execute("SELECT count(*) FROM outbox").fetchone()[0])

    def undelivered(self) -> set[str]:
        """The instances with events that are yet to be told."""
        return {row[0] for row in self._reads.execute("SELECT DISTINCT instance FROM outbox")}

    def last_number(self) -> int:
        """The highest number that an event ever had in this file; 0 if there was none."""
        rows = self._reads.execute("SELECT seq FROM sqlite_sequence WHERE name = 'outbox'")
        return int(next(rows, (0,))[0])

    def last_pending(self) -> int:
        """The number of the newest event that is yet to be told; 0 if there is none."""
        return int(self._reads.execute("SELECT coalesce(max(n), 0) FROM outbox").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._reads.close()
        self._db.close()
