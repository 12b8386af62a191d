"""The journal: what was written survives every fault of the process and of the disk."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import msgspec
import pytest
from msgspec import Struct
from msgspec.structs import asdict, replace

from bridge.box import diagnostics
from bridge.box.journal import journal as journal_module
from bridge.box.journal import store as journal_store
from bridge.box.journal.alerts import list_alerts
from bridge.box.journal.entry import JournalEntry
from bridge.box.journal.journal import Journal
from bridge.box.journal.store import read_snapshot
from bridge.box.runtimes.process_identity import ProcessIdentity
from bridge.box.state import lifecycle
from bridge.box.state.records import HostOrder, ServiceRecord
from bridge.errors import ForeignJournal, JournalError
from bridge.protocol import InstanceEvent, InstanceState, ScaleConfig, encode, now
from bridge.settings import ServiceConfig
from tests.failing_sqlite import FULL, FailingSqlite
from tests.support import eventually

S = InstanceState


def entry(name: str = "web-1", slot: int = 0) -> JournalEntry:
    return JournalEntry(
        slot=slot,
        config="c",
        service=ServiceConfig(command=["run", "{port}"], env={"A": "b"}),
        overrides=ScaleConfig(memory_mib=64, port_map=["8080:80"]),
        life=lifecycle.begin(name, "web", now()),
        identity=ProcessIdentity(pid=17, started=4, boot_id="b"),
        port=8080,
    )


def stepped(before: JournalEntry, to: InstanceState) -> tuple[JournalEntry, InstanceEvent]:
    life, event = lifecycle.step(before.life, to, now())
    return replace(before, life=life), event


@pytest.mark.parametrize("bound", ["MAX_REJECTED", "MAX_REJECTED_BYTES"])
async def test_events_that_can_never_be_stored_are_bounded_and_those_dropped_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    path, last = tmp_path / "journal.db", entry()
    async with Journal.open(path) as journal:
        for _ in range(5):
            life, event = lifecycle.note(last.life, now(), "x" * 300)
            last = replace(last, life=life)
            journal.put(last, event)
        await journal.wait_written()
        events = await journal.pending(0, 10)
        size = len(events[0].data)
        monkeypatch.setattr(journal_module, bound, 2 if bound == "MAX_REJECTED" else 2 * size)
        for item in events[:4]:
            journal.reject(item, f"reason {item.n}")
        await journal.wait_written()
        assert (journal.rejected, journal.rejected_dropped) == (2, 2)
    snapshot = read_snapshot(path)
    assert snapshot.rejected == (2, "reason 4")
    assert "2 older ones had to make room" in list_alerts(snapshot)[0]
    async with Journal.open(path) as journal:
        journal.reject(events[4], "reason 5")
        await journal.wait_written()
        assert (journal.rejected, journal.rejected_dropped) == (2, 3)


async def test_what_was_written_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    first = entry()
    second, event = stepped(first, S.BOOTING)
    async with Journal.open(path) as journal:
        journal.put(first)
        journal.put(second, event, traceparent="00-x")
        journal.keep_service("web", ServiceRecord(version=3, target=2, slots=[0, 1]))
        await journal.wait_written()
    async with Journal.open(path) as journal:
        assert journal.entries == {"web-1": second}
        assert journal.services["web"].version == 3
        assert journal.undelivered == {"web-1"}
        [pending] = await journal.pending(0, 10)
        assert (pending.seq, pending.event, pending.traceparent) == (1, event, "00-x")
        assert journal.last_before_restart == pending.n
        journal.mark_stored([pending.n])
        journal.forget("web-1")
    async with Journal.open(path) as journal:
        assert journal.entries == {}
        assert journal.backlog == 0


async def test_a_number_in_the_outbox_is_never_used_twice(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    at, event = stepped(entry(), S.BOOTING)
    async with Journal.open(path) as journal:
        journal.put(at, event)
        await journal.wait_written()
        [first] = await journal.pending(0, 10)
        journal.mark_stored([first.n])
    async with Journal.open(path) as journal:
        journal.put(at, event)
        await journal.wait_written()
        [second] = await journal.pending(0, 10)
    assert second.n > first.n


async def test_events_from_memory_equal_those_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_CACHE", 7)  # the rest is read from the file
    at = entry()
    async with Journal.open(tmp_path / "journal.db") as journal:
        after = 0
        for count in (1, 3, 20, 2, 30, 5):
            for _ in range(count):
                at = replace(at, life=lifecycle.note(at.life, now(), "note")[0])
                journal.put(at, lifecycle.note(at.life, now(), "note")[1], traceparent="t")
            await journal.wait_written()
            while page := await journal.pending(after, 4):
                assert page == journal._store.pending(after, len(page))  # without the cache
                journal.mark_stored([item.n for item in page])
                after = page[-1].n
        await journal.wait_written()
        assert journal._store.pending(0, 100) == []
        assert journal.backlog == 0
        assert after == 61


async def test_an_event_is_pending_once_it_is_on_disk_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sqlite = FailingSqlite.install(monkeypatch)
    async with Journal.open(tmp_path / "journal.db") as journal:
        await journal.wait_written()
        sqlite.fault = FULL
        journal.put(*stepped(entry(), S.BOOTING))
        await eventually(lambda: "disk is full" in journal.problem, what="the disk is full")
        assert await journal.pending(0, 10) == []
        sqlite.fault = None
        await journal.wait_written()
        assert len(await journal.pending(0, 10)) == 1


def test_a_group_leaves_what_its_changes_one_by_one_would(tmp_path: Path) -> None:
    def write(name: str, *groups: list[journal_store.Change]) -> list[list[tuple[object, ...]]]:
        store = journal_store.JournalStore(tmp_path / name)
        store.migrate()
        for group in groups:
            store.apply(group)
        rows = [
            sorted(store._db.execute(f"SELECT * FROM {table}"))  # noqa: S608
            for table in ("instances", "outbox", "services", "facts")
        ]
        store.close()
        return rows

    changes: list[journal_store.Change] = [
        ("outbox", (n, n), (n, f"web-{n % 7}", n, b"{}", "")) for n in range(1, 300)
    ]
    for n in range(300):
        name = f"web-{n % 90}"
        gone = n % 3 == 2
        changes.append(("instances", (name,), None if gone else (name, b"%d" % n)))
    changes += [("outbox", (3, 250), None), ("facts", ("a",), ("a", "b"))]
    changes += [("services", ("web",), ("web", n, b"%d" % n)) for n in range(5)]
    assert write("group.db", changes) == write("single.db", *([change] for change in changes))


async def test_only_the_newest_version_of_a_record_is_kept(tmp_path: Path) -> None:
    async with Journal.open(tmp_path / "journal.db") as journal:
        journal.keep_service("web", ServiceRecord(version=5, target=5))
        journal.keep_service("web", ServiceRecord(version=4, target=4))
        journal.keep_order("box-a", HostOrder(version=2, lifted=True))
        journal.keep_order("box-a", HostOrder(version=1))
        await journal.wait_written()
    async with Journal.open(tmp_path / "journal.db") as journal:
        assert journal.services["web"].target == 5
        assert journal.orders == {"box-a": HostOrder(version=2, lifted=True)}


async def test_many_changes_at_once_share_transactions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sqlite = FailingSqlite.install(monkeypatch)
    async with Journal.open(tmp_path / "journal.db") as journal:
        await journal.wait_written()
        before = sqlite.transactions
        for number in range(500):
            journal.put(entry(f"web-{number}"))
        await journal.wait_written()
        assert sqlite.transactions - before < 100
    assert len(read_snapshot(tmp_path / "journal.db").entries) == 500


@pytest.mark.parametrize("damage", ["flipped", "truncated", "foreign"])
async def test_a_damaged_journal_is_set_aside_and_a_new_one_begun(
    tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "journal.db"
    async with Journal.open(path) as journal:
        for number in range(300):
            journal.put(entry(f"web-{number}"))
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        for at in range(4096, len(data), 512):
            data[at] ^= 0xFF
    else:
        data = data[: len(data) // 2] if damage == "truncated" else bytearray(b"not SQLite" * 999)
    path.write_bytes(data)
    async with Journal.open(path) as journal:
        assert journal.entries == {}
        kept = Path(journal.set_aside)
        journal.put(entry())
    assert kept.read_bytes() == data
    seen = read_snapshot(path)
    assert seen.facts[journal_store.SET_ASIDE] == str(kept)
    assert len(seen.entries) == 1


def with_new_fields(value: object) -> object:
    """Each struct in `value` with a field that this version does not know."""
    if not isinstance(value, Struct):
        return value
    known = {key: with_new_fields(item) for key, item in asdict(value).items()}
    return {**known, "new_in_the_next_version": [1]}


def rewrite(path: Path, entry: bytes) -> None:
    """Replace the journal's single entry with `entry`."""
    db = sqlite3.connect(path)
    with db:
        assert db.execute("UPDATE instances SET entry = ?", (entry,)).rowcount == 1
    db.close()


async def test_settings_that_a_newer_version_wrote_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    first, event = stepped(entry(), S.BOOTING)
    async with Journal.open(path) as journal:
        journal.put(first, event)
    rewrite(path, msgspec.json.encode(with_new_fields(first)))
    assert read_snapshot(path).entries == [first]
    async with Journal.open(path) as journal:
        assert (journal.entries, journal.backlog, journal.set_aside) == ({"web-1": first}, 1, "")


async def rewritten(path: Path, word: bytes) -> bytes:
    """Write a journal whose instance is in the unknown state `word`; returns the file's bytes."""
    async with Journal.open(path) as journal:
        journal.put(entry())
    rewrite(path, encode(entry()).replace(b"Creating", word))
    return path.read_bytes()


async def test_a_state_that_only_another_version_knows_is_not_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.db"
    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "VERSION", "99.1")
        data = await rewritten(path, b"Hibernating")
    for read in (read_snapshot, journal_store.open_store):
        with pytest.raises(ForeignJournal, match=r"99\.1.*Hibernating.*use that version"):
            read(path)
    assert diagnostics.journal(tmp_path).fix == "use that version, or move the file away"
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == data


@pytest.mark.parametrize(("writer", "word"), [("this", b"Hibernating"), ("99.1", b"Creatin\xe7")])
async def test_a_row_that_no_version_can_have_written_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str, word: bytes
) -> None:
    path = tmp_path / "journal.db"
    with monkeypatch.context() as patch:
        if writer != "this":
            patch.setattr(journal_module, "VERSION", writer)
        data = await rewritten(path, word)
    async with Journal.open(path) as journal:
        assert journal.entries == {}
        assert Path(journal.set_aside).read_bytes() == data


async def test_a_journal_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    async with Journal.open(path):
        pass
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(JournalError, match="a newer one, schema 99"):
        async with Journal.open(path):
            pass
    assert path.exists()


def test_an_older_schema_is_brought_forward(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    store = journal_store.JournalStore(path)
    store.migrate(("CREATE TABLE a (x INTEGER);",))
    store.migrate(("never run again", "ALTER TABLE a ADD COLUMN y INTEGER;"))
    store._db.execute("INSERT INTO a VALUES (1, 2)")
    assert store._db.execute("PRAGMA user_version").fetchone() == (2,)
    store.close()


async def test_changes_wait_while_the_disk_is_full_and_are_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sqlite = FailingSqlite.install(monkeypatch)
    async with Journal.open(tmp_path / "journal.db") as journal:
        await journal.wait_written()
        sqlite.fault = FULL
        journal.put(entry("web-1"))
        await eventually(lambda: "disk is full" in journal.problem, what="the disk is full")
        journal.put(entry("web-2"))
        sqlite.fault = None
        await journal.wait_written()
        assert journal.problem == ""
    assert len(read_snapshot(tmp_path / "journal.db").entries) == 2


async def test_the_oldest_event_that_is_not_on_disk_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sqlite = FailingSqlite.install(monkeypatch)
    async with Journal.open(tmp_path / "journal.db") as journal:
        await journal.wait_written()
        sqlite.fault = FULL
        journal.put(entry("web-0"))
        assert journal.unwritten_since is None  # an entry without an event
        first, event = stepped(entry("web-1"), S.BOOTING)
        journal.put(first, event)
        journal.put(*stepped(first, S.READY))
        assert journal.unwritten_since == event.timestamp
        sqlite.fault = None
        await journal.wait_written()
        assert journal.unwritten_since is None


async def test_changes_that_are_lost_at_the_end_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sqlite = FailingSqlite.install(monkeypatch)

    async def work() -> None:
        async with Journal.open(tmp_path / "journal.db") as journal:
            await journal.wait_written()
            sqlite.fault = FULL
            journal.put(entry())
            await eventually(lambda: journal.problem != "", what="the disk is full")

    with pytest.raises(JournalError, match=r"1 changes could not be written.*disk is full"):
        await work()


async def test_a_journal_that_is_damaged_while_at_work_ends_its_box(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sqlite = FailingSqlite.install(monkeypatch)

    async def work() -> None:
        async with Journal.open(tmp_path / "journal.db") as journal:
            sqlite.fault = sqlite3.DatabaseError("database disk image is malformed")
            journal.put(entry())
            async with asyncio.timeout(10):
                await journal.watch()

    with pytest.raises(JournalError):
        await work()


async def test_reading_a_snapshot_changes_nothing_with_or_without_a_box(
    tmp_path: Path,
) -> None:
    path = tmp_path / "journal.db"
    async with Journal.open(path) as journal:
        journal.put(entry())
        await journal.wait_written()
        beside = sorted(tmp_path.iterdir())
        assert len(read_snapshot(path).entries) == 1  # from the WAL
        assert sorted(tmp_path.iterdir()) == beside
    assert list(tmp_path.iterdir()) == [path]
    assert len(read_snapshot(path).entries) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_snapshot_of_a_missing_journal_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="no Box has worked here"):
        read_snapshot(tmp_path / "journal.db")
