"""The process runtime with real processes, without a Box."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge.box.runtimes.base import Exit, Spec
from bridge.box.runtimes.process import shim
from bridge.box.runtimes.process.runtime import Process, ProcessRuntime
from bridge.box.runtimes.process_identity import ProcessIdentity
from tests.boxes import alive, labelled
from tests.support import FIRST_PORT, eventually


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[ProcessRuntime]:
    runtime = ProcessRuntime(
        tmp_path, range(FIRST_PORT, FIRST_PORT + 100), {"PATH": "/usr/bin:/bin"}
    )
    yield runtime
    await runtime.end_all()


def spec(tmp_path: Path, *command: str) -> Spec:
    return Spec(
        instance_id="web-a",
        service="web",
        command=list(command),
        cwd=str(tmp_path),
        env={},
        vcpus=None,
        memory_mib=None,
        image=None,
        port=0,
        directory=tmp_path / "web-a",
    )


async def not_recorded(identity: ProcessIdentity, port: int) -> None:
    """In place of a journal: nothing is recorded."""


async def test_a_sweep_spares_an_instance_that_is_being_spawned(
    runtime: ProcessRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawned, swept = threading.Event(), threading.Event()
    spawn = runtime._spawn

    def wait_for_sweep(process: Process) -> subprocess.Popen[bytes]:
        popen = spawn(process)
        spawned.set()
        assert swept.wait(10)
        return popen

    monkeypatch.setattr(runtime, "_spawn", wait_for_sweep)
    process = await runtime.create(spec(tmp_path, "sleep", "60"), print)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(runtime.start(process, not_recorded))
        assert await asyncio.to_thread(spawned.wait, 10)
        assert await runtime.sweep() == []
        swept.set()
    assert await runtime.stop(process, 5) == Exit(signal=15)


FLUSH_SLOWLY = """
trap 'sleep 0.3; echo flushed; exit' TERM
echo up
while :; do sleep 0.1; done
"""


@pytest.mark.parametrize(
    ("grace", "expected"), [(10.0, "up\nflushed\n"), (0.0, "up\n")], ids=["in-time", "too-late"]
)
async def test_a_child_of_a_shell_gets_the_grace_although_the_shell_has_ended(
    runtime: ProcessRuntime, tmp_path: Path, grace: float, expected: str
) -> None:
    (tmp_path / "service.sh").write_text(FLUSH_SLOWLY)
    (tmp_path / "start.sh").write_text("/bin/sh service.sh\necho the shell was not ended\n")
    process = await runtime.create(spec(tmp_path, "/bin/sh", "start.sh"), print)
    await runtime.start(process, not_recorded)
    log = process.spec.directory / "stdout.log"
    await eventually(lambda: log.read_text() == "up\n")
    await runtime.stop(process, grace)
    await eventually(lambda: not labelled(str(process.spec.directory)))
    assert log.read_text() == expected


async def test_a_dropped_shim_lives_on_unless_its_command_never_started(
    runtime: ProcessRuntime, tmp_path: Path
) -> None:
    process = await runtime.create(spec(tmp_path, "sleep", "60"), print)
    await runtime.start(process, not_recorded)
    process.popen = None  # as when a Box leaves its instances; a warning would be an error here
    assert alive(process.pid)
    never = tmp_path / "never"
    never.mkdir()
    popen = shim.spawn(never, ["sleep", "60"], cwd=tmp_path, env={})
    del popen  # as when a start is called off
    await eventually(lambda: shim.read_exit(never, None, killed=False) == Exit(ran=False))
