"""The journal's SQLite file: its schema, reads and writes, and how a damaged file is set aside.

This is the journal's error boundary: callers get a JournalError, never an exception of SQLite.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import sqlite3
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct, field

from bridge.box.journal.entry import JournalEntry, PendingEvent, UnreadableEvent
from bridge.box.state.records import HostOrder, ServiceRecord
from bridge.errors import ForeignJournal, JournalDamaged, JournalError, ProtocolError
from bridge.private_files import make_private
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
    """
    CREATE TABLE rejected (
        n INTEGER PRIMARY KEY,
        instance TEXT NOT NULL,
        seq INTEGER NOT NULL,
        event BLOB NOT NULL,
        traceparent TEXT NOT NULL,
        reason TEXT NOT NULL
    ) STRICT;
    """,
)
"""Each script brings the schema one version further; ``user_version`` counts them."""

JOURNAL: Final = "journal.db"
"""The name of the file in a Box's data_dir."""

# Facts about this host, for people.
CUT_OFF: Final = "cut_off_since"
SET_ASIDE: Final = "set_aside"
FLEET: Final = "fleet"  # the prefix and the NATS URLs of the Box that writes the journal
DROPPED: Final = "rejected_dropped"  # rejected events that had to make room for newer ones
WRITTEN_BY: Final = "written_by"  # the last version of box-bridge that worked with the file

Change = tuple[str, tuple[Any, ...], tuple[Any, ...] | None]
"""A table, the key in it, and the row to put there; None deletes.

Of several changes to one key that are applied together, only the last is written. A key of the
outbox is a first and a last number: many rows may be deleted at once, but one is put.
"""

T = TypeVar("T")
Row = tuple[Any, ...]

_COLUMNS: Final = {
    "instances": 2,
    "outbox": 5,
    "services": 3,
    "facts": 2,
    "orders": 2,
    "rejected": 6,
}
_DELETE: Final = {
    "instances": "DELETE FROM instances WHERE id = ?",
    "outbox": "DELETE FROM outbox WHERE n BETWEEN ? AND ?",
    "facts": "DELETE FROM facts WHERE name = ?",
    "rejected": "DELETE FROM rejected WHERE n = ?",
}
_ROWS: Final = (128, 16, 1)  # rows of one INSERT statement


class _KnownProbe(Probe, frozen=True, kw_only=True, forbid_unknown_fields=False):
    pass


class _KnownService(ServiceConfig, frozen=True, kw_only=True, forbid_unknown_fields=False):
    probe: _KnownProbe = field(default_factory=_KnownProbe)


class _KnownEntry(JournalEntry, frozen=True, kw_only=True):
    """A JournalEntry that ignores unknown settings: a newer version may have written them."""

    service: _KnownService


class Snapshot(Struct, frozen=True, kw_only=True):
    """What a journal says of its host: instances, facts, and the events that are not stored.

    `rejected` is the number of events that can never be stored, and why the last one cannot.
    """

    entries: list[JournalEntry]
    facts: dict[str, str]
    backlog: int
    oldest: datetime | None
    rejected: tuple[int, str] = (0, "")


def read_snapshot(path: Path) -> Snapshot:
    """Read the journal at `path` without a change, even while its Box works with it.

    Raises JournalError if there is no journal, or if it cannot be read.
    """
    with _mapped_errors(path, "read"):
        if not path.exists():
            raise JournalError(f"there is no journal at {path}: no Box has worked here")
    with contextlib.closing(JournalStore(path, readonly=True)) as store:
        backlog = [item for item in store.pending(0, 10) if isinstance(item, PendingEvent)]
        return Snapshot(
            entries=list(store.entries().values()),
            facts=store.facts(),
            backlog=store.backlog(),
            oldest=backlog[0].event.timestamp if backlog else None,
            rejected=store.rejected(),
        )


def open_store(path: Path) -> tuple[JournalStore, str]:
    """The store at `path`, and the new name of the file if it was damaged; else "".

    Raises JournalError if no journal can be kept there, and ForeignJournal if this version cannot
    read what another one wrote.
    """
    try:
        return _open_whole(path), ""
    except JournalDamaged as exc:
        set_aside = str(_set_aside(path))
        _log.error(
            "%s: it is kept as %s, and a new one is built from what runs on this host",
            exc,
            set_aside,
        )
    store = _open_whole(path)
    try:
        store.apply([("facts", (SET_ASIDE,), (SET_ASIDE, set_aside))])
    except BaseException:
        store.close()
        raise
    return store, set_aside


def _open_whole(path: Path) -> JournalStore:
    """The store at `path`, checked and brought to the newest schema."""
    store = JournalStore(path)
    try:
        store.check()
        store.migrate()
        store.entries()
        store.services()
        store.orders()
        store.pending(0, 1)
    except BaseException:
        store.close()
        raise
    return store


def _set_aside(path: Path) -> Path:
    """Rename the journal and the files that belong to it; returns its new name."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    kept = path.with_name(f"{path.name}.damaged-{stamp}")
    with _mapped_errors(path, "set aside"):
        for suffix in ("-wal", "-shm", ""):
            with contextlib.suppress(FileNotFoundError):
                path.with_name(path.name + suffix).rename(kept.with_name(kept.name + suffix))
    return kept


@contextlib.contextmanager
def _mapped_errors(path: Path, verb: str) -> Iterator[None]:
    """Raise JournalError for a foreign exception: the journal at `path` cannot be <verb>.

    The one place that tells transient failures (a full or read-only disk, a lock, an I/O error)
    from damage (JournalDamaged), and from a value that SQLite does not take.
    """
    try:
        yield
    except sqlite3.Error as exc:
        # Python's sqlite3 reports text that is not UTF-8 as an OperationalError, too.
        not_text = str(exc).startswith("Could not decode")
        if not isinstance(exc, sqlite3.OperationalError) or not_text:
            raise JournalDamaged(f"the journal {path} is damaged: {exc}") from exc
        problem = f"the journal {path} cannot be {verb}: {exc}"
        raise JournalError(problem, transient=True) from exc
    except (OSError, ValueError, OverflowError) as exc:
        transient = isinstance(exc, OSError)
        problem = f"the journal {path} cannot be {verb}: {exc}"
        raise JournalError(problem, transient=transient) from exc


class JournalStore:
    """The SQLite file. One thread may write while another one reads.

    Every call raises JournalError, or JournalDamaged if the file itself is damaged.
    """

    def __init__(self, path: Path, *, readonly: bool = False) -> None:
        self.path = path
        self._readonly = readonly
        with _mapped_errors(path, "opened"):
            self._db = self._connect()
            try:
                self._reads = self._connect()
            except sqlite3.Error:
                self._db.close()
                raise

    def _connect(self) -> sqlite3.Connection:
        mode = "ro" if self._readonly else "rwc"
        if self._readonly and not self.path.with_name(f"{self.path.name}-wal").exists():
            # No Box works with it. SQLite would create that file, or fail where it cannot.
            mode += "&immutable=1"
        if not self._readonly:
            with contextlib.suppress(OSError):  # SQLite reports it, too
                make_private(self.path)  # SQLite gives its other files the same mode
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
                db.execute("PRAGMA synchronous=FULL")  # a commit is on the disk
        except sqlite3.Error:
            db.close()
            raise
        return db

    def check(self) -> None:
        """Raise JournalDamaged if the file is damaged."""
        with _mapped_errors(self.path, "checked"):
            problems = [row[0] for row in self._db.execute("PRAGMA quick_check(5)")]
            if problems != ["ok"]:
                raise sqlite3.DatabaseError("; ".join(map(str, problems)))

    def migrate(self, migrations: Sequence[str] = _MIGRATIONS) -> None:
        """Bring the schema forward. Raises ForeignJournal if a newer version wrote it."""
        with _mapped_errors(self.path, "migrated"):
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version > len(migrations):
                raise ForeignJournal(
                    str(self.path),
                    f"a newer one, schema {version}; this one knows {len(migrations)}",
                )
            for number, script in enumerate(migrations[version:], start=version + 1):
                self._db.executescript(f"BEGIN; {script}; PRAGMA user_version={number}; COMMIT;")

    def apply(self, changes: Sequence[Change]) -> None:
        """Write all of `changes` in one transaction, or none.

        One statement writes many rows: at each statement the thread releases the interpreter, and
        gets it back when the event loop is idle, or after 5 ms.
        """
        tables: dict[str, dict[Row, Row | None]] = {}
        for table, key, row in changes:
            tables.setdefault(table, {})[key] = row
        with _mapped_errors(self.path, "written"):
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

    def _put(self, table: str, rows: Sequence[Row]) -> None:
        place, values = 0, f"({', '.join('?' * _COLUMNS[table])})"
        for size in _ROWS:
            sql = f"INSERT OR REPLACE INTO {table} VALUES {', '.join([values] * size)}"  # noqa: S608
            while len(rows) - place >= size:
                self._db.execute(sql, [*itertools.chain.from_iterable(rows[place : place + size])])
                place += size

    # ── reading ──────────────────────────────────────────────────────────────────────────

    def entries(self) -> dict[str, JournalEntry]:
        """The instances that were not forgotten, by id."""
        rows = self._select("SELECT id, entry FROM instances")
        return {
            name: msgspec.convert(
                self._decode(_KnownEntry, entry), JournalEntry, from_attributes=True
            )
            for name, entry in rows
        }

    def services(self) -> dict[str, ServiceRecord]:
        """The newest known record of each service."""
        rows = self._select("SELECT name, record FROM services")
        return {name: self._decode(ServiceRecord, record) for name, record in rows}

    def orders(self) -> dict[str, HostOrder]:
        """The newest known order for each host."""
        rows = self._select("SELECT host, record FROM orders")
        return {host: self._decode(HostOrder, record) for host, record in rows}

    def facts(self) -> dict[str, str]:
        """The facts that `Journal.set_fact` wrote."""
        return dict(self._select("SELECT name, value FROM facts"))

    def pending(self, after: int, limit: int) -> list[PendingEvent | UnreadableEvent]:
        """The first `limit` rows after number `after`, in order. One damaged event is no damage of
        the journal: the others are read.
        """
        rows = self._select(
            "SELECT n, seq, event, CAST(traceparent AS BLOB), CAST(instance AS BLOB) FROM outbox "
            "WHERE n > ? ORDER BY n LIMIT ?",
            after,
            limit,
        )
        return [self._read_event(row) for row in rows]

    def _read_event(self, row: Row) -> PendingEvent | UnreadableEvent:
        n, seq, data, traceparent, instance = row
        trace, name = (str(text, "utf-8", "replace") for text in (traceparent, instance))
        try:
            return PendingEvent(n, seq, self._decode(InstanceEvent, data), trace, data)
        except JournalDamaged as exc:
            return UnreadableEvent(n, name, seq, trace, data, str(exc))

    def backlog(self) -> int:
        """How many events wait in the outbox."""
        return self._number("SELECT count(*) FROM outbox")

    def rejected(self) -> tuple[int, str]:
        """How many events can never be stored, and why the last one cannot."""
        tables = "SELECT count(*) FROM sqlite_master WHERE name = 'rejected'"
        if not self._number(tables):  # an older version wrote this file, which is only read
            return 0, ""
        last = self._select("SELECT reason FROM rejected ORDER BY n DESC LIMIT 1")
        return self._number("SELECT count(*) FROM rejected"), last[0][0] if last else ""

    def rejected_sizes(self) -> list[tuple[int, int]]:
        """The number and the bytes of each event that can never be stored, the oldest first."""
        return self._select("SELECT n, length(event) FROM rejected ORDER BY n")

    def undelivered(self) -> set[str]:
        """The instances with events in the outbox."""
        return {row[0] for row in self._select("SELECT DISTINCT instance FROM outbox")}

    def last_number(self) -> int:
        """The highest number that an event ever had in this file; 0 if there was none."""
        return self._number("SELECT max(seq) FROM sqlite_sequence WHERE name = 'outbox'")

    def last_pending(self) -> int:
        """The number of the newest event in the outbox; 0 if it is empty."""
        return self._number("SELECT max(n) FROM outbox")

    def close(self) -> None:
        """Close the file."""
        with _mapped_errors(self.path, "closed"):
            self._reads.close()
            self._db.close()

    def _select(self, sql: str, *parameters: int) -> list[Row]:
        with _mapped_errors(self.path, "read"):
            return self._reads.execute(sql, parameters).fetchall()

    def _number(self, sql: str) -> int:
        return int(self._select(sql)[0][0] or 0)

    def _decode(self, cls: type[T], data: bytes) -> T:
        """A value from a row.

        Raises ForeignJournal for JSON that another version wrote and this one cannot read. Anything
        else that cannot be read is damage.
        """
        try:
            return decode(cls, data)
        except ProtocolError as exc:
            writer = self.facts().get(WRITTEN_BY, VERSION)
            if writer == VERSION or not isinstance(exc.__cause__, msgspec.ValidationError):
                raise JournalDamaged(f"the journal {self.path} is damaged: {exc}") from exc
            problem = f"{writer}; this one, {VERSION}, cannot read {exc}"
            raise ForeignJournal(str(self.path), problem) from exc
