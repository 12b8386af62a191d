"""Faults that a Box survives: a full disk, a wrong clock, garbage, a crash loop."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from datetime import timedelta
from pathlib import Path

import pytest

from bridge.admin_protocol import Host
from bridge.box.daemon import Box
from bridge.box.journal.store import read_snapshot
from bridge.box.scheduler.planner import MAX_FAILURES
from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.api import jetstream
from bridge.errors import BusError
from bridge.gateway.operator import Operator
from bridge.protocol import (
    InstanceEvent,
    InstancesRequest,
    InstancesResponse,
    InstanceState,
    decode,
    encode,
    format_time,
    now,
)
from bridge.tasks import task_scope
from tests.boxes import alive, fetch, gated, labelled, serving
from tests.faults.history import History
from tests.faults.killable import Killable, check, killable, scaled
from tests.fleet import Fleet
from tests.support import (
    FIRST_PORT,
    TIMING,
    Recorder,
    ask,
    box_config,
    connect,
    eventually,
    service_table,
)

S = InstanceState


def fill_disk(directory: Path, box: Killable) -> int:
    """Leave no room for the journal of box-a; returns the limit that there was before."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = (directory / "data-box-a" / "journal.db-wal").stat().st_size
    assert (directory / "box-a.log").stat().st_size < limit, "it is the journal that must fail"
    resource.prlimit(box.process.pid, resource.RLIMIT_FSIZE, (limit, hard))
    return hard


async def serving_on(gateway: Connection, host: str) -> set[str]:
    """The instances that serve on `host`."""
    reply = await gateway.request("box.instances", encode(InstancesRequest(service="web")))
    answer = decode(InstancesResponse, reply.data)
    ready = [info.id for info in answer.instances if info.state in (S.READY, S.BUSY)]
    return {name for name in ready if answer.hosts.get(name) == host}


async def test_a_full_disk_stops_only_new_work_and_only_while_it_is_full(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with killable(server, tmp_path) as (gateway, box):
        await scaled(gateway, 2)
        before = await serving(gateway, "web", 2)
        dead, alive_one = [(await fetch(info))["pid"] for info in before]
        hard = fill_disk(tmp_path, box)
        os.kill(dead, signal.SIGKILL)

        async def refused() -> bool:
            try:
                answer = await ask(gateway, "web", 2, timeout=1.0)
            except BusError:
                return False
            return "journal" in (answer.error or "") and "cannot be written" in (answer.error or "")

        await eventually(refused, what="new work is refused, and why is said")
        assert alive(alive_one)
        assert box.process.poll() is None
        resource.prlimit(box.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        history = await check(gateway, box, 2)
        assert history.states()[before[0].id][-1] is S.FAILED
        assert history.states()[before[1].id][-1] in (S.READY, S.BUSY)


@pytest.mark.slow
async def test_no_instance_is_placed_on_a_host_that_cannot_start_one(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with killable(server, tmp_path) as (gateway, box):
        await scaled(gateway, 2)
        before = await serving(gateway, "web", 2)
        ports = f"{FIRST_PORT + 500}-{FIRST_PORT + 999}"
        other = box_config(tmp_path, server.url, name="box-b", max_instances=4, ports=ports)
        async with Box.running(other):
            hard = fill_disk(tmp_path, box)
            os.kill((await fetch(before[0]))["pid"], signal.SIGKILL)
            operator = Operator(gateway)

            async def told() -> Host | None:
                hosts = {host.name: host for host in await operator.hosts()}
                return None if hosts["box-a"].ready else hosts["box-a"]

            [notice] = [text for text in (await eventually(told)).notices if "journal" in text]
            assert "cannot be written" in notice
            await scaled(gateway, 5)  # box-a has most room, and nothing that is made is written

            async def taken() -> bool:
                return len(await serving_on(gateway, "box-b")) == 3

            await eventually(taken, what="the other host takes them")
            resource.prlimit(box.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
            await serving(gateway, "web", 5)


@pytest.mark.slow
async def test_a_box_restores_deleted_buckets_with_its_own_records(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with killable(server, tmp_path) as (gateway, box):
        await scaled(gateway, 2)
        before = await serving(gateway, "web", 2)
        buckets = [f"KV_box_{name}" for name in ("services", "slots", "hosts", "admin")]
        for bucket in buckets:
            await jetstream(gateway).delete_stream(bucket)

        async def there() -> bool:
            return all([await topology.stream_info(gateway, name) for name in buckets])

        await eventually(there, what="all buckets are there again")

        async def unchanged() -> bool:
            try:
                answer = await ask(gateway, "web", 2, timeout=1.0)
            except BusError:
                return False
            return answer.accepted and answer.current_replicas == 2

        await eventually(unchanged, what="the Box decides again")
        assert [info.id for info in await serving(gateway, "web", 2)] == [
            info.id for info in before
        ]
        await check(gateway, box, 2)


async def test_a_clock_that_is_set_back_an_hour_changes_no_chain(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    error = timedelta()
    box = Box(box_config(tmp_path, server.url), clock=lambda: now() + error)
    async with task_scope() as tasks, connect(server.url) as gateway:
        work = tasks.create_task(box.run())
        await box.wait_ready()
        expiry = {"Box-Expires-At": format_time(now() + timedelta(minutes=1))}
        assert (await ask(gateway, "web", 1, headers=expiry)).accepted
        [info] = await serving(gateway, "web", 1)
        error = timedelta(hours=-1)
        os.kill((await fetch(info))["pid"], signal.SIGKILL)
        assert (await ask(gateway, "web", 2, headers=expiry)).accepted
        history = await History.settled(gateway, await serving(gateway, "web", 2))
        history.check()
        first, last = (history.events[info.id][at][1] for at in (0, -1))
        assert last.to_state is S.FAILED
        assert last.timestamp < first.timestamp - timedelta(minutes=50), "the fault did not fire"
        error = timedelta(hours=1)
        assert "set the clock" in ((await ask(gateway, "web", 3, headers=expiry)).error or "")
        error = timedelta()
        box.stop()
        await work


def failed(recorder: Recorder) -> list[InstanceEvent]:
    """The events that say so, in order."""
    return [event for _, event in recorder.events if event.to_state is S.FAILED]


async def placed_on(fleet: Fleet, host: str) -> None:
    """Return when the one instance serves there; one Box may be a moment behind another."""

    async def so() -> bool:
        await serving(fleet.gateway, "web", 1)
        return set((await fleet.placed()).values()) == {host}

    await eventually(so, what=f"it serves on {host}")


@pytest.mark.slow
@pytest.mark.parametrize("error", [timedelta(), timedelta(hours=-1)], ids=["right", "set back"])
async def test_a_crash_loop_keeps_its_backoff_when_the_box_is_killed(
    server: EmbeddedServer, tmp_path: Path, error: timedelta
) -> None:
    table = service_table("web", "crash")
    timing = TIMING.replace("backoff_first = 0.2\nbackoff_max = 1.0", "backoff_first = 3")
    async with killable(server, tmp_path, table, timing=timing) as (gateway, box):
        recorder = await Recorder.listening(gateway)
        await scaled(gateway, 1)
        await eventually(lambda: failed(recorder), what="it has failed")
        journal = tmp_path / "data-box-a" / "journal.db"
        await eventually(lambda: not read_snapshot(journal).backlog, what="outbox empty")
        await box.kill()
        config = box_config(tmp_path, server.url, table, timing=timing)
        async with Box.running(config, clock=lambda: now() + error):
            await eventually(lambda: len(failed(recorder)) >= 3, what="it goes on")
        first, *later = [event.timestamp for event in failed(recorder)]
        first += error
        assert later[0] - first >= timedelta(seconds=3), "it waits, whoever is to try again"
        assert later[1] - later[0] >= timedelta(seconds=6), "each time for longer"
        history = await History.settled(gateway, [])
        history.check()
        assert {event.message for event in failed(recorder)} == {
            "exited with code 7: no database to be found"
        }
        assert not box.pids()
        assert read_snapshot(journal).entries == []


@pytest.mark.slow
async def test_failures_are_counted_over_restarts_of_a_box(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    table, patient = service_table("web", "crash"), TIMING.replace("lease = 3", "lease = 30")
    slow = patient.replace("backoff_first = 0.2\nbackoff_max = 1.0", "backoff_first = 0.7")
    quick = patient.replace("backoff_max = 1.0", "backoff_max = 0.2")
    journal = tmp_path / "data-box-a" / "journal.db"
    async with Fleet.of(server, tmp_path) as fleet:
        recorder = fleet.recorder
        async with killable(server, tmp_path, table, timing=slow) as (gateway, box):
            await scaled(gateway, 1)
            await eventually(lambda: len(failed(recorder)) == 4, what="four failed")
            await eventually(lambda: not read_snapshot(journal).backlog, what="outbox empty")
            await box.kill()
        assert len(failed(recorder)) == 4, "the fault did not fire: there were 5.6 s for it"
        await fleet.join("box-b", max_instances=2, timing=quick)
        await fleet.join("box-a", table, timing=quick)
        await placed_on(fleet, "box-b")
        assert len(failed(recorder)) == MAX_FAILURES
    assert read_snapshot(journal).entries == []


@pytest.mark.slow
async def test_an_instance_that_served_for_long_has_recovered_over_a_restart_of_its_box(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    door, timing = tmp_path / "door", TIMING.replace("backoff_max = 1.0", "backoff_max = 0.2")
    table = gated(door, "exit 3")
    config = box_config(tmp_path, server.url, table, timing=timing, on_exit="leave")
    async with Fleet.of(server, tmp_path) as fleet:
        recorder = fleet.recorder
        async with Box.running(config):
            await ask(fleet.gateway, "web", 1)
            await eventually(lambda: len(failed(recorder)) >= 4, what="so many have failed")
            door.touch()
            [info] = await serving(fleet.gateway, "web", 1)
        before = len(failed(recorder))
        fleet.ahead = timedelta(hours=1)
        await fleet.join("box-a", table, timing=timing)
        await fleet.join("box-b", max_instances=2, timing=timing)
        assert [one.id for one in await serving(fleet.gateway, "web", 1)] == [info.id]
        for pid in labelled(str(config.data_dir / "instances" / info.id)):
            os.kill(pid, signal.SIGKILL)
        await eventually(lambda: len(failed(recorder)) > before, what="it has failed")
        await placed_on(fleet, "box-a")
        assert len(failed(recorder)) == before + 1


GARBAGE = (b"", b"\xff\xfe", b"not JSON", b"[" * 10_000, b"{}", b'{"service":"\xff"}')
SUBJECTS = (
    b"box.scale",
    b"box.instances",
    b"box.events.web",
    b"box.events.\xff",
    b"box.register.web.web-1",
    b"box.register.\xff.x",
    b"box.deregister.web.web-1",
    b"box.health.web.web-1",
    b"box.stats.box-a",
    b"box.stats.\xff",
    b"$KV.box_slots.web.0",
    b"$KV.box_slots.web.99",
    b"$KV.box_slots.\xff",
    b"$KV.box_hosts.box-b",
    b"$KV.box_services.other",
    b"$SRV.PING",
    b"$SRV.INFO.box",
)


async def test_garbage_on_every_subject_changes_nothing(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with killable(server, tmp_path) as (gateway, box):
        await scaled(gateway, 2)
        before = await serving(gateway, "web", 2)
        pids = box.pids()
        host, _, port = server.url.removeprefix("nats://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b'CONNECT {"verbose":false,"headers":true}\r\n')
        for subject in SUBJECTS:
            for body in GARBAGE:
                writer.write(b"PUB %s _INBOX.x %d\r\n%s\r\n" % (subject, len(body), body))
                head = b"NATS/1.0\r\n\xff: \xfe\r\nno colon\r\n\r\n"
                total = len(head) + len(body)
                writer.write(
                    b"HPUB %s _INBOX.x %d %d\r\n%s%s\r\n" % (subject, len(head), total, head, body)
                )
        writer.write(b"PING\r\n")
        while (await reader.readline()) != b"PONG\r\n":
            pass
        writer.close()
        await scaled(gateway, 3)
        history = await check(gateway, box, 3)
        assert {info.id for info in before} <= set(history.states())
        assert pids <= box.pids()
        await box.kill()
        async with Box.running(box_config(tmp_path, server.url)):
            await check(gateway, box, 3)
            assert pids <= box.pids()
