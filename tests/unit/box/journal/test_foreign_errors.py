"""The error boundary of the journal: whatever SQLite raises, callers get a BridgeError."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from bridge.box.journal import alerts, store
from bridge.box.journal.journal import Journal
from bridge.box.journal.store import SET_ASIDE, JournalStore, Snapshot, open_store, read_snapshot
from bridge.box.state.records import ServiceRecord
from bridge.errors import JournalDamaged, JournalError, ProtocolError
from bridge.protocol import InstanceState, now
from tests.failing_call import OS_ERRORS, FailingCall
from tests.failing_sqlite import FULL, FailingSqlite
from tests.support import eventually
from tests.unit.box.journal.test_journal import entry, stepped

DENIED: Final = PermissionError(errno.EACCES, "Permission denied")
TRANSIENT: Final = [
    FULL,
    sqlite3.OperationalError("disk I/O error"),
    sqlite3.OperationalError("database is locked"),
    sqlite3.OperationalError("attempt to write a readonly database"),
    OSError("without an errno"),
]
DAMAGE: Final = [
    sqlite3.DatabaseError("database disk image is malformed"),
    sqlite3.OperationalError("Could not decode to UTF-8 column 'id' with text 'x'"),
    sqlite3.IntegrityError("NOT NULL constraint failed: facts.value"),
    sqlite3.DataError("string or blob too big"),
    sqlite3.InternalError("internal error"),
    sqlite3.NotSupportedError("not supported"),
    sqlite3.ProgrammingError("Cannot operate on a closed database."),
    sqlite3.InterfaceError("bad parameter or other API misuse"),
    sqlite3.Error("unknown"),
]
UNWRITABLE: Final = [
    UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    ValueError("embedded null character"),
    OverflowError("Python int too large to convert to SQLite INTEGER"),
]
FAULTS: Final = [*TRANSIENT, *DAMAGE, *UNWRITABLE]


@pytest.fixture
def sqlite(monkeypatch: pytest.MonkeyPatch) -> FailingSqlite:
    return FailingSqlite.install(monkeypatch)


def check(error: JournalError, fault: Exception) -> None:
    """The error has its cause, and marks what is fatal."""
    assert error.__cause__ is fault
    assert isinstance(error, JournalDamaged) == (fault in DAMAGE)
    assert error.transient == (fault in TRANSIENT or fault in OS_ERRORS)
    assert "the journal /" in str(error)


def test_every_foreign_exception_of_every_call_is_a_journal_error(
    tmp_path: Path, sqlite: FailingSqlite
) -> None:
    opened, _ = open_store(tmp_path / "journal.db")
    reads: list[Callable[[], object]] = [
        opened.entries,
        opened.services,
        opened.orders,
        opened.facts,
        lambda: opened.pending(0, 1),
        opened.backlog,
        opened.undelivered,
        opened.last_number,
        opened.last_pending,
    ]
    calls: list[tuple[str, Callable[[], object]]] = [
        *(("SELECT", read) for read in reads),
        ("PRAGMA quick_check", opened.check),
        ("PRAGMA user_version", opened.migrate),
        ("BEGIN", lambda: opened.apply([])),
        ("INSERT", lambda: opened.apply([("facts", ("a",), ("a", "b"))])),
        ("COMMIT", lambda: opened.apply([])),
        ("connect", lambda: JournalStore(tmp_path / "journal.db")),
        ("PRAGMA journal_mode", lambda: JournalStore(tmp_path / "journal.db")),
    ]
    for fault in [*FAULTS, *OS_ERRORS]:
        for sqlite.statement, call in calls:
            sqlite.fault = fault
            with pytest.raises(JournalError) as raised:
                call()
            check(raised.value, fault)
    sqlite.fault = None
    assert opened.facts() == {}, "what failed left nothing behind"
    opened.close()


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
def test_only_a_damaged_file_is_set_aside_when_a_journal_is_opened(
    tmp_path: Path, sqlite: FailingSqlite, fault: Exception
) -> None:
    open_store(tmp_path / "journal.db")[0].close()
    sqlite.statement, sqlite.fault = "PRAGMA quick_check", fault
    with pytest.raises(JournalError) as raised:
        open_store(tmp_path / "journal.db")
    check(raised.value, fault)
    damaged = list(tmp_path.glob("journal.db.damaged-*"))
    assert bool(damaged) == (fault in DAMAGE)
    assert sqlite.failures == 1 + (fault in DAMAGE)


def test_a_file_that_cannot_be_set_aside_is_a_journal_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "journal.db").write_bytes(b"not SQLite" * 999)
    for fault in OS_ERRORS:
        if not isinstance(fault, FileNotFoundError):
            monkeypatch.setattr(Path, "rename", FailingCall(fault))
            with pytest.raises(JournalError, match="cannot be set aside"):
                open_store(tmp_path / "journal.db")


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
def test_a_snapshot_that_cannot_be_read_is_a_journal_error(
    tmp_path: Path, sqlite: FailingSqlite, fault: Exception
) -> None:
    open_store(tmp_path / "journal.db")[0].close()
    sqlite.statement, sqlite.fault = "SELECT", fault
    with pytest.raises(JournalError) as raised:
        read_snapshot(tmp_path / "journal.db")
    check(raised.value, fault)


def test_a_snapshot_behind_a_closed_directory_is_a_journal_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Path, "exists", FailingCall(DENIED))
    with pytest.raises(JournalError, match=r"cannot be read.*Permission denied"):
        read_snapshot(Path("/x/journal.db"))


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
async def test_a_transient_fault_delays_writes_and_any_other_ends_the_box(
    tmp_path: Path, sqlite: FailingSqlite, fault: Exception
) -> None:
    watched: list[JournalError] = []

    async def work() -> None:
        async with Journal.open(tmp_path / "journal.db") as journal:
            await journal.wait_written()
            sqlite.fault = fault
            journal.put(entry())
            await eventually(lambda: journal.problem)
            if fault in TRANSIENT:
                sqlite.fault = None
                await journal.wait_written()
                return
            async with asyncio.timeout(10):
                try:
                    await journal.watch()
                except JournalError as exc:
                    watched.append(exc)

    if fault in TRANSIENT:
        await work()
        assert len(read_snapshot(tmp_path / "journal.db").entries) == 1
        return
    with pytest.raises(JournalError, match="1 changes could not be written"):
        await work()
    check(watched[0], fault)


async def test_a_mistake_in_the_writer_ends_the_box_and_does_not_stop_the_thread_silently(
    tmp_path: Path, sqlite: FailingSqlite
) -> None:
    fault = TypeError("a mistake")

    async def work() -> None:
        async with Journal.open(tmp_path / "journal.db") as journal:
            await journal.wait_written()
            sqlite.fault = fault
            journal.put(entry())
            async with asyncio.timeout(10):
                with pytest.raises(JournalError, match="TypeError") as raised:
                    await journal.watch()
            assert raised.value.__cause__ is fault

    with pytest.raises(JournalError, match="1 changes could not be written"):
        await work()


async def test_events_that_cannot_be_read_back_are_a_journal_error(
    tmp_path: Path, sqlite: FailingSqlite
) -> None:
    async with Journal.open(tmp_path / "journal.db") as journal:
        journal.put(*stepped(entry(), InstanceState.BOOTING))
    async with Journal.open(tmp_path / "journal.db") as journal:
        await journal.wait_written()
        for fault in FAULTS:
            sqlite.statement, sqlite.fault = "SELECT", fault
            with pytest.raises(JournalError) as raised:
                await journal.pending(0, 10)
            check(raised.value, fault)
        sqlite.fault = None


@pytest.mark.parametrize("statement", ["SELECT max(seq)", "SELECT max(n)", "SELECT DISTINCT"])
async def test_a_journal_that_fails_after_its_check_is_a_journal_error(
    tmp_path: Path, sqlite: FailingSqlite, statement: str
) -> None:
    sqlite.statement, sqlite.fault = statement, FULL
    with pytest.raises(JournalError) as raised:
        async with Journal.open(tmp_path / "journal.db"):
            pass
    check(raised.value, FULL)


async def test_text_that_is_not_utf_8_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    async with Journal.open(path) as journal:
        journal.keep_service("web", ServiceRecord(version=1, target=1))
    db = sqlite3.connect(path)
    with db:
        db.execute("UPDATE services SET name = CAST(x'ff' AS TEXT)")
    db.close()
    async with Journal.open(path) as journal:
        assert journal.services == {}
        assert journal.set_aside


@pytest.mark.parametrize(
    "fault",
    [
        ProtocolError("InstanceEvent", "", "not JSON"),
        ProtocolError("JournalEntry", "slot", "missing"),
    ],
    ids=["an event", "an entry"],
)
async def test_a_row_that_cannot_be_decoded_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    def refuse(*_: object) -> Any:
        raise fault from msgspec.DecodeError("Input data was truncated")

    async with Journal.open(tmp_path / "journal.db") as journal:
        journal.put(*stepped(entry(), InstanceState.BOOTING))
    monkeypatch.setattr(store, "decode", refuse)
    with pytest.raises(JournalDamaged) as raised:
        read_snapshot(tmp_path / "journal.db")
    assert raised.value.__cause__ is fault


def test_an_alert_stays_while_its_file_cannot_be_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = Snapshot(entries=[], facts={SET_ASIDE: "/x/damaged"}, backlog=0, oldest=now())
    assert alerts.list_alerts(snapshot) == []
    monkeypatch.setattr(Path, "exists", FailingCall(DENIED))
    assert "set aside as /x/damaged" in alerts.list_alerts(snapshot)[0]
