"""A container engine that hangs, is gone or is killed, alone or with its Box: instances stay."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.box.daemon import Box
from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.protocol import InstanceInfo, InstanceState
from tests.boxes import boxed, serving
from tests.containers import containers, get, script, web
from tests.faults.history import History
from tests.faults.killable import scaled
from tests.podman import Podman
from tests.registry import registry
from tests.support import ask, box_config, connect, eventually

S = InstanceState


async def unready(gateway: Connection, expected: str, *, replicas: int) -> None:
    """Return when the Box refuses a request that changes nothing, with the expected reason."""

    async def is_refused() -> bool:
        answer = await ask(gateway, "web", replicas)
        return not answer.accepted and expected in (answer.error or "")

    await eventually(is_refused, what=f"refused with {expected!r}")


async def ready(gateway: Connection, replicas: int) -> None:
    """Return when the Box accepts requests."""

    async def is_taken() -> bool:
        return (await ask(gateway, "web", replicas)).accepted

    await eventually(is_taken, what="a request is accepted")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "expected"),
    [("hung", "podman 4.* does not answer"), ("gone", "podman: not found")],
)
async def test_a_box_reports_a_failing_engine_and_keeps_its_instances(
    server: EmbeddedServer, tmp_path: Path, podman: Podman, fault: str, expected: str
) -> None:
    async with boxed(server, tmp_path, web(), **containers(podman)) as (gateway, recorder):
        await ask(gateway, "web", 2)
        before = await serving(gateway, "web", 2)
        count = len(recorder.events)
        pids = {info.id: podman.pid(info.id) for info in before}
        with podman.fault(fault):
            await unready(gateway, expected.partition("*")[0].strip(), replicas=2)
            for info in before:
                assert await get(info)
            os.kill(pids[before[0].id], signal.SIGKILL)  # reported when the engine answers again
            await unready(gateway, "not ready: podman", replicas=2)
            assert not [e for _, e in recorder.events[count:] if e.to_state is S.FAILED]
            calls = len(podman.calls())
            await asyncio.sleep(3)  # three or four calls; a busy loop would make many more
            assert len(podman.calls()) - calls <= 8
        await ready(gateway, 2)
        await recorder.reached(before[0].id, "Failed")
        assert recorder.of(before[0].id)[-1].message.startswith("killed by signal 9")
        after = await serving(gateway, "web", 2)
        assert before[1].id in {info.id for info in after}


@pytest.mark.slow
async def test_a_container_that_is_slow_to_start_is_started_once(
    server: EmbeddedServer, tmp_path: Path, podman: Podman
) -> None:
    async with boxed(server, tmp_path, web(), **containers(podman)) as (gateway, recorder):
        with podman.fault("slow"):
            await ask(gateway, "web", 1)
            [info] = await serving(gateway, "web", 1)
        assert [call for call in podman.calls() if call.startswith("start")] == [f"start {info.id}"]
        assert await recorder.reached(info.id, "Ready") == ["Booting", "Ready"]


@pytest.mark.slow
async def test_an_instance_stopped_while_the_engine_hangs_ends_once_it_answers(
    server: EmbeddedServer, tmp_path: Path, podman: Podman
) -> None:
    async with boxed(server, tmp_path, web(), **containers(podman)) as (gateway, recorder):
        await ask(gateway, "web", 1)
        [info] = await serving(gateway, "web", 1)
        with podman.fault("hung"):
            await ask(gateway, "web", 0)
            await recorder.reached(info.id, "Stopping")
            await unready(gateway, "does not answer", replicas=0)
            assert podman.names() == {info.id}
        await recorder.reached(info.id, "Stopped")
        await eventually(lambda: not podman.names())


@pytest.mark.slow
async def test_an_end_that_the_engine_does_not_notice_is_reported(
    server: EmbeddedServer, tmp_path: Path, podman: Podman
) -> None:
    async with boxed(server, tmp_path, web(), **containers(podman)) as (gateway, recorder):
        await ask(gateway, "web", 1)
        [info] = await serving(gateway, "web", 1)
        podman.kill_monitor(info.id)
        os.kill(podman.pid(info.id), signal.SIGKILL)
        await recorder.reached(info.id, "Failed")
        assert "still reports it as running" in recorder.of(info.id)[-1].message
        [other] = await serving(gateway, "web", 1)
        assert other.id != info.id
        await eventually(lambda: podman.names() == {other.id})


async def test_a_box_does_not_start_while_its_engine_does_not_answer(
    server: EmbeddedServer, tmp_path: Path, podman: Podman
) -> None:
    config = box_config(tmp_path, server.url, web(), **containers(podman))
    with podman.fault("gone"), pytest.raises(Exception, match="podman: not found"):
        await Box(config).run()


class Killed:
    """A Box with containers, in its own process, to be killed."""

    def __init__(self, directory: Path, podman: Podman) -> None:
        self._directory = directory
        self._podman = podman
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        with (self._directory / "box.log").open("ab") as log:
            file = str(self._directory / "box-a.toml")
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bridge.cli", "box", "-c", file], stderr=log
            )
        return self.process

    def kill(self) -> None:
        self.process.kill()
        assert self.process.wait() == -signal.SIGKILL, "the fault did not fire"

    def kill_with_engine(self) -> int:
        """Kill the Box and its running calls to the engine; returns how many calls were killed."""
        calls = children(self.process.pid)
        self.kill()
        ended = 0
        for pid in calls:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, signal.SIGKILL)
                ended += 1
        return ended


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


@pytest.fixture
def killed(podman: Podman, tmp_path: Path, server: EmbeddedServer) -> Iterator[Killed]:
    box_config(tmp_path, server.url, web(), **containers(podman, on_exit="leave"))
    box = Killed(tmp_path, podman)
    yield box
    box.process.kill()
    box.process.wait()


async def settled(gateway: Connection, podman: Podman, replicas: int) -> list[InstanceInfo]:
    """Return when `replicas` serve, each chain of events is whole, and no container is left."""
    await scaled(gateway, replicas)  # once the Box answers

    async def alike() -> tuple[list[InstanceInfo]] | None:
        there = await serving(gateway, "web", replicas)
        return (there,) if podman.names() == {info.id for info in there} else None

    [there] = await eventually(alike)
    (await History.settled(gateway, there)).check()
    return there


def secrets(tmp_path: Path) -> list[Path]:
    """The environment files that remain."""
    return list((tmp_path / "data-box-a" / "secrets").iterdir())


async def test_containers_survive_the_kill_of_their_box_and_are_adopted(
    server: EmbeddedServer, tmp_path: Path, podman: Podman, killed: Killed
) -> None:
    async with connect(server.url) as gateway:
        await scaled(gateway, 3)
        before = await serving(gateway, "web", 3)
        pids = {info.id: podman.pid(info.id) for info in before}
        killed.kill()
        for info in before:
            assert await get(info)
        gone = before[0].id
        os.kill(pids.pop(gone), signal.SIGKILL)
        killed.start()
        after = await settled(gateway, podman, 3)
        assert set(pids) < {info.id for info in after}
        assert {name: podman.pid(name) for name in pids} == pids
        history = await History.read(gateway)
        assert history.states()[gone][-1] is S.FAILED
        assert history.events[gone][-1][1].message.startswith("killed by signal 9")
        untouched = [history.states()[name] for name in pids]
        assert all(S.FAILED not in states and S.DRAINING not in states for states in untouched)


async def test_containers_are_adopted_without_a_journal(
    server: EmbeddedServer, tmp_path: Path, podman: Podman, killed: Killed
) -> None:
    async with connect(server.url) as gateway:
        await scaled(gateway, 2)
        before = await serving(gateway, "web", 2)
        pids = {info.id: podman.pid(info.id) for info in before}
        killed.kill()
        for file in (tmp_path / "data-box-a").glob("journal.db*"):
            file.unlink()
        killed.start()
        after = await settled(gateway, podman, 2)
        assert {info.id: podman.pid(info.id) for info in after} == pids


@pytest.mark.slow
@pytest.mark.parametrize("calls", ["create", "start", "stop"])
async def test_a_box_and_its_engine_killed_at_work_leave_nothing_behind(
    server: EmbeddedServer, tmp_path: Path, podman: Podman, killed: Killed, calls: str
) -> None:
    async with connect(server.url) as gateway:
        await scaled(gateway, 3)
        if calls == "stop":
            await serving(gateway, "web", 3)
            await scaled(gateway, 0)
        await eventually(lambda: any(call.startswith(calls) for call in podman.calls()))
        assert killed.kill_with_engine(), "the fault did not fire"
        left = tmp_path / "data-box-a" / "secrets" / "web-of-the-killed"
        left.touch()
        killed.start()
        await settled(gateway, podman, 0 if calls == "stop" else 3)
        assert not secrets(tmp_path)


@pytest.mark.slow
async def test_a_box_killed_during_a_pull_pulls_again_after_its_restart(
    server: EmbeddedServer, tmp_path: Path, podman: Podman, killed: Killed
) -> None:
    killed.kill()
    with registry(podman) as images:
        table = web(image=images.name)
        box_config(tmp_path, server.url, table, **containers(podman, on_exit="leave"))
        killed.start()
        async with connect(server.url) as gateway:
            await scaled(gateway, 1)
            await eventually(lambda: any("/blobs/" in path for path in images.asked))
            assert killed.kill_with_engine(), "the fault did not fire"
            images.open.set()
            killed.start()
            await settled(gateway, podman, 1)
        killed.kill()


@pytest.mark.slow
async def test_a_crash_loop_of_containers_leaves_none_behind(
    server: EmbeddedServer, tmp_path: Path, podman: Podman
) -> None:
    table = web(*script("sleep 0.2; exit 1"))
    async with boxed(server, tmp_path, table, **containers(podman)) as (gateway, recorder):
        await ask(gateway, "web", 3)

        def failures() -> int:
            return sum(event.to_state is S.FAILED for _, event in recorder.events)

        await eventually(lambda: failures() >= 9)
        assert len(podman.names()) <= 6
        await ask(gateway, "web", 0)
        await eventually(lambda: not podman.names())
