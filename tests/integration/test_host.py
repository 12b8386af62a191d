"""One Box for each host name and data directory, and what a restarted Box adopts."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bridge.box.daemon import Box
from bridge.box.fleet import streams
from bridge.box.fleet.fence import Fence
from bridge.box.fleet.host_lease import HostLease, LeaseTerm
from bridge.box.host_directory import own_directory
from bridge.box.state.lifecycle import ENDED
from bridge.box.state.records import HostRecord
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.api import jetstream
from bridge.bus.jetstream.kv_view import KeyValueView, Record
from bridge.bus.jetstream.publish import store
from bridge.errors import (
    BoxError,
    BusError,
    ConfigError,
    HostTaken,
    ProtocolError,
    TopologyMismatch,
)
from bridge.protocol import InstanceState
from bridge.settings import Timing
from bridge.tasks import task_scope
from tests.boxes import alive, boxed, gone, labelled, serving
from tests.support import ask, box_config, connect, eventually, service_table


async def start(box: Box) -> None:
    """Run a Box until it is ready, then stop it. Raises the error that ends it."""
    async with task_scope() as tasks:
        work = tasks.create_task(box.run())
        ready = tasks.create_task(box.wait_ready())
        await asyncio.wait((work, ready), return_when=asyncio.FIRST_COMPLETED)
        box.stop()
        await work


def test_one_box_at_a_time_uses_a_directory_and_its_id_is_kept(tmp_path: Path) -> None:
    with (
        own_directory(tmp_path / "data") as first,
        pytest.raises(HostTaken, match="another Box uses"),
        own_directory(tmp_path / "data"),
    ):
        raise AssertionError("two Boxes in one directory")
    with own_directory(tmp_path / "data") as again:
        assert again == first
    with own_directory(tmp_path / "other") as other:
        assert other != first


def test_an_unusable_directory_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BoxError, match="cannot be used"), own_directory(tmp_path / "file" / "x"):
        raise AssertionError("there is no such directory")


def test_a_directory_on_a_full_disk_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(BoxError, match="cannot be used: No space left"), own_directory(tmp_path):
        raise AssertionError("there is no host id")
    monkeypatch.undo()
    with own_directory(tmp_path) as first:
        pass
    monkeypatch.setattr(Path, "write_text", fail)
    with own_directory(tmp_path) as again:
        assert again == first


async def test_a_box_does_not_start_under_a_name_that_is_live_under_another_id(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path) as (gateway, _):
        (tmp_path / "elsewhere").mkdir()
        twin = box_config(tmp_path / "elsewhere", server.url)
        with pytest.raises(HostTaken, match="'box-a' is live under another id"):
            await start(Box(twin))
        assert (await ask(gateway, "web", 0)).accepted  # the first Box still answers


@pytest.mark.slow
async def test_a_box_with_a_wiped_directory_waits_for_the_old_lease_to_end(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    config = box_config(tmp_path, server.url)
    async with connect(server.url) as connection:
        await topology.ensure(connection, lifetimes=topology.Lifetimes.of(config.timing))
        left = b'{"host_id":"old","runtime":"process","cpus":1,"max_instances":1,"services":{}}'
        await store(connection, "$KV.box_hosts.box-a", left)
        async with asyncio.timeout(60):
            await start(Box(config))


@pytest.mark.slow
async def test_a_box_starts_after_an_unreadable_record_under_its_name(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, reads = KeyValueView.read, 0

    async def read_junk_first(
        self: KeyValueView[HostRecord], key: str
    ) -> Record[HostRecord] | None:
        nonlocal reads
        reads += 1
        if reads == 1:
            raise ProtocolError("HostRecord", "", "not JSON")
        return await read(self, key)

    monkeypatch.setattr(KeyValueView, "read", read_junk_first)
    config = box_config(tmp_path, server.url)
    async with connect(server.url) as connection:
        await topology.ensure(connection, lifetimes=topology.Lifetimes.of(config.timing))
        left = b'{"host_id":"old","runtime":"process","cpus":1,"max_instances":1,"services":{}}'
        await store(connection, "$KV.box_hosts.box-a", left)
        await start(Box(config))
    assert reads > 1


async def test_a_box_with_a_copied_directory_does_not_start_beside_the_original(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path) as (gateway, recorder):
        await ask(gateway, "web", 1)
        [info] = await serving(gateway, "web", 1)
        shutil.copytree(tmp_path / "data-box-a", tmp_path / "copy" / "data-box-a")
        with pytest.raises(HostTaken, match="'box-a' is live on another machine"):
            await start(Box(box_config(tmp_path / "copy", server.url)))
        assert [there.id for there in await serving(gateway, "web", 1)] == [info.id]
        assert not {e.to_state for _, e in recorder.events} & {*ENDED, InstanceState.DRAINING}


@asynccontextmanager
async def leasing(
    server: EmbeddedServer, fence: Path, *, lease: int = 3
) -> AsyncIterator[tuple[Callable[[str], HostLease], KeyValueView[HostRecord], asyncio.TaskGroup]]:
    """A function that makes a lease of one host id in a place, its bucket, and a task group."""
    timing = Timing(lease=lease, heartbeat=lease / 6)
    async with connect(server.url) as connection, task_scope() as tasks:
        await topology.ensure(connection, lifetimes=topology.Lifetimes.of(timing))
        hosts = KeyValueView(connection, "box_hosts", HostRecord)
        tasks.create_task(hosts.run())
        await hosts.wait_live()

        def make(place: str) -> HostLease:
            term = LeaseTerm(timing.lease, Fence(fence))
            return HostLease(hosts, "box-a", record(place), timing, term, lambda record: record)

        yield make, hosts, tasks


def record(place: str) -> HostRecord:
    return HostRecord(
        host_id="id", runtime="process", cpus=1, max_instances=1, services={}, place=place
    )


@pytest.mark.parametrize("place", ["here", ""], ids=["own", "of-an-older-box"])
async def test_a_restarted_box_takes_its_own_lease_at_once(
    server: EmbeddedServer, tmp_path: Path, place: str
) -> None:
    async with leasing(server, tmp_path / "fence", lease=60) as (make, hosts, _):
        await hosts.put("box-a", record(place))
        async with asyncio.timeout(20):
            await make("here").take()


@pytest.mark.slow
async def test_a_lease_from_before_a_reboot_must_end_first(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with leasing(server, tmp_path / "fence") as (make, hosts, _):
        left = await hosts.put("box-a", record("before"))
        lease = make("here")
        async with asyncio.timeout(60):
            await lease.take()
        assert lease._term.held
        with pytest.raises(BusError):
            await hosts.update("box-a", record("before"), left)


@pytest.mark.slow
async def test_of_two_clones_that_start_together_one_ends(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with leasing(server, tmp_path / "fence") as (make, hosts, _):
        clones = [make("here"), make("there")]
        await asyncio.gather(*(clone.take() for clone in clones))
        assert all(clone._term.held for clone in clones), "neither has seen the other's record"
        async with task_scope() as tasks:
            works = [tasks.create_task(run(clone)) for clone in clones]
            await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
            assert sorted(work.done() for work in works) == [False, True]
            await hosts.wait_for(hosts.revision("box-a") + 3)  # the other still renews
            assert sorted(work.done() for work in works) == [False, True]


@pytest.mark.slow
async def test_a_machine_that_comes_back_outlasts_its_clone(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with leasing(server, tmp_path / "fence") as (make, hosts, tasks):
        older, younger = make("there"), make("here")
        await older.take()
        await older.release()  # as after more than a lease without NATS
        await younger.take()
        await older.renew_now()
        work = tasks.create_task(older.run())
        await run(younger)
        await hosts.wait_for(hosts.revision("box-a") + 3)
        assert not work.done()


@pytest.mark.slow
async def test_a_late_renewal_by_an_earlier_process_ends_no_box(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with leasing(server, tmp_path / "fence") as (make, hosts, tasks):
        last, lease = make("here"), make("here")
        await last.take()
        await lease.take()
        work = tasks.create_task(lease.run())
        for _ in range(3):
            await last.renew_now()
            await hosts.wait_for(hosts.revision("box-a") + 1)
        assert not work.done()


async def run(lease: HostLease) -> None:
    with pytest.raises(HostTaken, match="is live on another machine"):
        await lease.run()


async def test_a_box_waits_at_its_start_for_a_bucket_without_a_leader(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster a new stream has no leader for a moment."""
    take, tries = HostLease.take, 0

    async def take_after_a_loss(self: HostLease) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            await jetstream(gateway).delete_stream("KV_box_hosts")
        await take(self)

    monkeypatch.setattr(HostLease, "take", take_after_a_loss)
    async with connect(server.url) as gateway, boxed(server, tmp_path):
        assert (await ask(gateway, "web", 0)).accepted
    assert tries > 1


async def test_a_restarted_box_adopts_the_instances_of_a_killed_one(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    box_config(tmp_path, server.url)  # writes box-a.toml
    command = [sys.executable, "-m", "bridge.cli", "box", "-c", str(tmp_path / "box-a.toml")]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        async with connect(server.url) as gateway:

            async def up() -> bool:
                try:
                    return (await ask(gateway, "web", 2)).accepted
                except Exception:
                    return False

            await eventually(up)
            before = await serving(gateway, "web", 2)
            os.kill(first.pid, signal.SIGKILL)
            first.wait()
            root = tmp_path / "data-box-a" / "instances"
            left = [pid for info in before for pid in labelled(str(root / info.id))]
            assert len(left) == 4  # a shim and a service each
            async with Box.running(box_config(tmp_path, server.url)):
                after = await serving(gateway, "web", 2)
                assert {info.id for info in after} == {info.id for info in before}
                assert all(alive(pid) for pid in left)
            for pid in left:
                await gone(pid)
    finally:
        first.kill()
        first.wait()


@pytest.mark.slow
async def test_a_stream_with_wrong_settings_ends_the_box_with_the_difference(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with connect(server.url) as connection:
        await jetstream(connection).add_stream(
            name="BOX_EVENTS", subjects=["box.events.*"], max_msgs=10
        )
        with pytest.raises(TopologyMismatch, match="discard is old, and must be new"):
            await start(Box(box_config(tmp_path, server.url)))


@pytest.mark.slow
async def test_a_stream_recreated_with_wrong_settings_in_an_outage_ends_the_box(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "CONFIRM", 1.0)
    box = Box(box_config(tmp_path, server.url))

    async def run_through_the_outage() -> None:
        async with asyncio.timeout(60), task_scope() as tasks:
            tasks.create_task(box.run())
            await box.wait_ready()
            await server.kill()
            shutil.rmtree(server.directory / "jetstream")
            async with (  # the stream is created with wrong settings in between, on another port
                EmbeddedServer(server.directory) as elsewhere,
                connect(elsewhere.url) as connection,
            ):
                await jetstream(connection).add_stream(
                    name="BOX_EVENTS", subjects=["box.events.*"], max_msgs=10
                )
            await server.start()
            await asyncio.Event().wait()  # until the Box's failure ends this

    with pytest.raises(TopologyMismatch, match="discard is old"):
        await run_through_the_outage()


def test_a_setting_that_the_runtime_cannot_honour_is_a_configuration_error(tmp_path: Path) -> None:
    config = box_config(tmp_path, "nats://127.0.0.1:1", service_table("web", vcpus=255))
    with pytest.raises(ConfigError, match=r"\[services.web\]: vcpus must be 1 to"):
        Box(config)


async def test_a_loopback_address_with_a_remote_nats_is_warned_about(
    server: EmbeddedServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await start(Box(box_config(tmp_path, server.url)))
    assert "which only this host can reach" not in caplog.text
    monkeypatch.setattr("bridge.bus.core.connection.Connection.is_local", False)
    await start(Box(box_config(tmp_path, server.url)))
    assert "instances register at 127.0.0.1, which only this host can reach" in caplog.text


async def test_metrics_can_be_scraped_with_the_token_of_the_data_directory(
    server: EmbeddedServer, tmp_path: Path, unused_port: int
) -> None:
    more = f'metrics = ":{unused_port}"'
    async with boxed(server, tmp_path, more=more) as (gateway, _):
        await ask(gateway, "web", 1)
        await serving(gateway, "web", 1)
        await ask(gateway, "nope", 1)

        file = tmp_path / "data-box-a" / "metrics-token"
        assert file.stat().st_mode & 0o077 == 0
        url, token = f"http://127.0.0.1:{unused_port}/metrics", file.read_text().strip()
        for wrong in ("", "Bearer", f"Bearer {token}x"):
            request = urllib.request.Request(url, headers={"Authorization": wrong})
            with pytest.raises(urllib.error.HTTPError, match="401"):
                await asyncio.to_thread(urllib.request.urlopen, request)

        def scrape() -> str:
            request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
            with urllib.request.urlopen(request) as page:  # noqa: S310, it is the Box
                text: str = page.read().decode()
                return text

        async def complete() -> bool:
            text = await asyncio.to_thread(scrape)
            return all(
                line in text
                for line in (
                    'box_bridge_instances{service="web",state="ready"} 1.0',
                    'box_bridge_requests_total{endpoint="scale",outcome="accepted"} 1.0',
                    'box_bridge_requests_total{endpoint="scale",outcome="refused"} 1.0',
                    "box_bridge_ready 1.0",
                    "box_bridge_events_stored_total 2.0",
                )
            )

        await eventually(complete)


async def test_a_box_stops_with_its_instances_while_nats_is_down(
    server: EmbeddedServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for timeout in ("runner.instance._WITHDRAW", "runner.supervisor._RELEASE", "daemon._FLUSH"):
        monkeypatch.setattr(f"bridge.box.{timeout}_TIMEOUT", 0.2)
    box = Box(box_config(tmp_path, server.url))
    async with task_scope() as tasks:
        work = tasks.create_task(box.run())
        await box.wait_ready()
        async with connect(server.url) as gateway:
            await ask(gateway, "web", 1)
            [info] = await serving(gateway, "web", 1)
        await server.kill()
        box.stop()
        async with asyncio.timeout(20):
            await work
    assert labelled(str(tmp_path / "data-box-a" / "instances" / info.id)) == []
    assert (
        "events are not published yet: this Box publishes them when it is started again"
        in caplog.text
    )
