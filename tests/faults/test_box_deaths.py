"""A Box that is killed at the worst moments: its next life goes on where it was."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
from pathlib import Path

import pytest
from msgspec.structs import replace

from bridge.box.daemon import Box
from bridge.box.journal.store import read_snapshot
from bridge.box.state.records import SlotRecord
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream.kv_view import KeyValueView
from bridge.protocol import InstanceState
from tests.boxes import alive, fetch, labelled, serving
from tests.faults.failing_box import POINTS
from tests.faults.history import History
from tests.faults.killable import check, killable, scaled
from tests.support import box_config, eventually, service_table

S = InstanceState


@pytest.mark.parametrize(
    "point",
    [
        pytest.param(point, marks=[] if point in ("spawned", "ended") else pytest.mark.slow)
        for point in POINTS
    ],
)
async def test_an_acknowledged_request_is_fulfilled_wherever_the_box_died(
    server: EmbeddedServer, tmp_path: Path, point: str
) -> None:
    async with killable(server, tmp_path, point=point) as (gateway, box):
        await scaled(gateway, 2)
        if point == "ended":
            await serving(gateway, "web", 2)
            await scaled(gateway, 0)
        await box.died()
        wanted = 0 if point == "ended" else 2
        async with Box.running(box_config(tmp_path, server.url)):
            history = await check(gateway, box, wanted)
            assert not any(S.FAILED in states for states in history.states().values())
            assert len(history.events) == 2
        assert not box.pids()


async def test_a_killed_box_changes_nothing_for_its_instances_and_their_requests(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with killable(server, tmp_path) as (gateway, box):
        await scaled(gateway, 2)
        before = await serving(gateway, "web", 2)
        pids = box.pids()
        gate = tmp_path / "gate"
        slow = asyncio.ensure_future(fetch(before[0], f"/until?{gate}"))
        await box.kill()
        async with Box.running(box_config(tmp_path, server.url)):
            after = await serving(gateway, "web", 2)
            assert {info.id for info in after} == {info.id for info in before}
            assert box.pids() == pids
            gate.touch()
            assert (await slow)["instance"] == before[0].id
            history = await check(gateway, box, 2)
            assert all(S.FAILED not in states for states in history.states().values())
            log = box.instances / before[0].id / "stdout.log"
            assert log.read_text().count("serving on") == 1


async def test_an_instance_that_died_without_a_box_is_reported_once_and_replaced(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with killable(server, tmp_path) as (gateway, box):
        await scaled(gateway, 2)
        before = await serving(gateway, "web", 2)
        pids = [(await fetch(info))["pid"] for info in before]
        await box.kill()
        os.kill(pids[0], signal.SIGKILL)
        with pytest.raises(OSError):  # noqa: PT011 (whichever way the connection breaks)
            await fetch(before[1], "/exit?3")
        await eventually(lambda: not box.pids(), what="both are gone, with their shims")
        async with Box.running(box_config(tmp_path, server.url)):
            history = await check(gateway, box, 2)
        ends = {name: told[-1][1] for name, told in history.events.items()}
        assert ends[before[0].id].message.startswith("killed by signal 9")
        assert ends[before[1].id].message == "exited with code 3: told to exit"
        assert all(ends[info.id].to_state is S.FAILED for info in before)


@pytest.mark.slow
async def test_a_reused_pid_is_neither_adopted_nor_signalled(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with killable(server, tmp_path) as (gateway, box):
        await scaled(gateway, 1)
        [info] = await serving(gateway, "web", 1)
        await box.kill()
        entry = read_snapshot(tmp_path / "data-box-a" / "journal.db").entries[0]
        assert entry.identity is not None
        for pid in box.pids():
            os.kill(pid, signal.SIGKILL)
        await eventually(lambda: not box.pids(), what="the instance is dead")
        stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
        try:
            _rewrite_pid(tmp_path / "data-box-a" / "journal.db", entry.identity.pid, stranger.pid)
            async with Box.running(box_config(tmp_path, server.url)):
                history = await check(gateway, box, 1)
                assert history.states()[info.id][-1] is S.FAILED
            assert stranger.poll() is None
        finally:
            stranger.kill()
            stranger.wait()


def _rewrite_pid(journal: Path, old: int, new: int) -> None:
    """Have the journal name another pid: as if the kernel had used the old one again."""
    db = sqlite3.connect(journal)
    with db:
        [(name, entry)] = db.execute("SELECT id, entry FROM instances").fetchall()
        changed = entry.replace(f'"pid":{old}'.encode(), f'"pid":{new}'.encode())
        assert changed != entry
        db.execute("UPDATE instances SET entry = ? WHERE id = ?", (changed, name))
    db.close()


@pytest.mark.parametrize(
    "damage",
    [
        "gone",
        *(
            pytest.param(how, marks=pytest.mark.slow)
            for how in ("flipped", "truncated", "tail lost")
        ),
    ],
)
async def test_a_lost_journal_is_rebuilt_from_the_host_and_the_fleet(
    server: EmbeddedServer, tmp_path: Path, damage: str
) -> None:
    async with killable(server, tmp_path) as (gateway, box):
        await scaled(gateway, 2)
        before = await serving(gateway, "web", 2)
        await box.kill()
        pids = [(await fetch(info))["pid"] for info in before]
        os.kill(pids[0], signal.SIGKILL)
        gone = str(box.instances / before[0].id)
        await eventually(lambda: not labelled(gone), what="one has died meanwhile, with its shim")
        journal = tmp_path / "data-box-a" / "journal.db"
        _damage(journal, damage)
        async with Box.running(box_config(tmp_path, server.url)):
            history = await check(gateway, box, 2)
            assert history.states()[before[0].id][-1] is S.FAILED
            assert history.states()[before[1].id][-1] in (S.READY, S.BUSY)
            assert alive(pids[1])
        kept = list(journal.parent.glob("journal.db.damaged-*"))
        assert bool(kept) == (damage in ("flipped", "truncated"))


async def test_a_lost_journal_is_rebuilt_from_a_record_older_than_the_last_event(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with killable(server, tmp_path) as (gateway, box):
        await scaled(gateway, 1)
        [before] = await serving(gateway, "web", 1)
        await box.kill()
        slots = KeyValueView(gateway, "box_slots", SlotRecord)
        record = await slots.read("web.0")
        assert record is not None
        booting = replace(before, state=S.BOOTING, ready_at=None, endpoint=None)
        await slots.put("web.0", replace(record.value, seq=1, info=booting))
        _damage(tmp_path / "data-box-a" / "journal.db", "gone")
        async with Box.running(box_config(tmp_path, server.url)):
            await check(gateway, box, 1)
            [after] = await serving(gateway, "web", 1)
            assert (after.id, after.endpoint) == (before.id, before.endpoint)


def _damage(journal: Path, how: str) -> None:
    wal = journal.with_name("journal.db-wal")
    if how == "tail lost":  # SQLite takes a broken log for one that ends there
        wal.write_bytes(wal.read_bytes()[: wal.stat().st_size // 2])
        return
    if how != "gone":
        db = sqlite3.connect(journal)
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.close()
    for file in journal.parent.glob("journal.db-*"):
        file.unlink()
    data = bytearray(journal.read_bytes())
    journal.unlink()
    if how == "gone":
        return
    if how == "truncated":
        data = data[:5000]
    for at in range(4096, len(data), 64):
        data[at] ^= 0xFF
    journal.write_bytes(data)


async def test_an_unknown_process_with_the_label_of_an_instance_is_ended(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    label = str(tmp_path / "data-box-a" / "instances" / "web-unknown")
    stray = subprocess.Popen(
        ["sleep", "60"], env={"BOX_INSTANCE_DIR": label, "PATH": "/bin:/usr/bin"}
    )
    async with Box.running(box_config(tmp_path, server.url)):
        assert stray.wait(10) == -signal.SIGKILL


async def test_an_instance_of_a_service_that_is_no_longer_offered_drains(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with killable(server, tmp_path) as (gateway, box):
        await scaled(gateway, 1)
        [info] = await serving(gateway, "web", 1)
        await box.kill()
        async with Box.running(box_config(tmp_path, server.url, service_table("api"))):
            await eventually(lambda: not box.pids(), what="it has drained")
            history = await History.settled(gateway, [])
        history.check()
        assert history.states()[info.id][-2:] == [S.STOPPING, S.STOPPED]
