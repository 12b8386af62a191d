"""The process runtime with real processes, without a Box."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
from msgspec.structs import replace

from bridge import descriptors
from bridge.box.runtimes.base import Exit, Spec
from bridge.box.runtimes.process import shim
from bridge.box.runtimes.process.handle import Process
from bridge.box.runtimes.process.runtime import ProcessRuntime
from bridge.box.runtimes.process_identity import ProcessIdentity
from tests.boxes import alive, labelled
from tests.failing_call import FailingCall
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

    def wait_for_sweep(process: Process, env: dict[str, str]) -> subprocess.Popen[bytes]:
        popen = spawn(process, env)
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


STRANGE: Final = {
    "spring.profiles.active": "prod",
    "npm-config": "x",
    "1 name = odd?": "kept",
    "fence": "1",
    "code": "7",
    "IFS": "0123456789",
    "PS4": "$(touch pwned)",
    "BASH_ENV": "/nowhere",
    "SHLVL": "40",
    "PWD": "/elsewhere",
    "UID": "5",
    "OPTIND": "x",
    "quoted": "a 'b' \"c\" $d `e` \\",
    "lines": "one\ntwo\n\nfour\n",
    "empty": "",
    "bytes": os.fsdecode(b"caf\xe9"),
    "large": "x" * 100_000,
}


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox"])
async def test_an_instance_gets_its_environment_byte_for_byte(
    runtime: ProcessRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: str
) -> None:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"there is no {shell} on this host")
    monkeypatch.setattr(shim, "_SHELL", [path, "sh"] if shell == "busybox" else [path])
    strange = {name.replace("=", ":"): value for name, value in STRANGE.items()}
    copy = "import shutil; shutil.copy('/proc/self/environ', 'seen')"
    process = await runtime.create(
        replace(spec(tmp_path, sys.executable, "-I", "-S", "-c", copy), env=strange), print
    )
    await runtime.start(process, not_recorded)
    assert await runtime.watch(process) == Exit()
    items = (tmp_path / "seen").read_bytes().split(b"\0")
    seen = dict(os.fsdecode(item).split("=", 1) for item in items if item)
    own = {"PATH", "PORT", "BOX_INSTANCE_ID", "BOX_SERVICE", "BOX_INSTANCE_DIR"}
    assert seen.keys() == strange.keys() | own
    assert {name: seen[name] for name in strange} == strange
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("name", ["fence", "code", "try", "until", "BOX_INSTANCE_DIR2"])
async def test_no_variable_of_an_instance_is_one_of_its_shim(
    runtime: ProcessRuntime, tmp_path: Path, name: str
) -> None:
    victim = await asyncio.create_subprocess_exec("sleep", "60")
    process = await runtime.create(
        replace(spec(tmp_path, "true"), env={name: str(victim.pid)}), print
    )
    await runtime.start(process, not_recorded)
    assert await runtime.watch(process) == Exit()
    assert victim.returncode is None
    assert alive(victim.pid)
    victim.kill()
    assert await victim.wait() == -signal.SIGKILL


async def test_a_command_is_searched_on_its_own_path_from_its_own_directory(
    runtime: ProcessRuntime, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "program"
    program.write_text('echo "$0 $PATH"\n')  # without "#!": a shell runs it
    program.chmod(0o755)
    process = await runtime.create(
        replace(spec(tmp_path, "program"), env={"PATH": "/nowhere:bin"}), print
    )
    await runtime.start(process, not_recorded)
    assert await runtime.watch(process) == Exit()
    log = process.spec.directory / "stdout.log"
    assert log.read_text() == "bin/program /nowhere:bin\n"


@pytest.mark.parametrize(
    ("command", "env", "code", "why"),
    [
        (["no-such-program"], {}, 127, "cannot run no-such-program: No such file or directory"),
        (["/"], {}, 126, "cannot run /: Permission denied"),
        (["true"], {"A": "x" * 131_072}, 126, "cannot run true: its command and environment, "),
    ],
)
async def test_a_command_that_cannot_be_run_ends_with_the_reason_in_its_log(
    runtime: ProcessRuntime,
    tmp_path: Path,
    command: list[str],
    env: dict[str, str],
    code: int,
    why: str,
) -> None:
    process = await runtime.create(replace(spec(tmp_path, *command), env=env), print)
    await runtime.start(process, not_recorded)
    assert await runtime.watch(process) == Exit(code=code)
    assert (await runtime.last_line(process)).startswith(why)


async def test_signals_that_python_ignores_are_not_ignored_by_an_instance(
    runtime: ProcessRuntime, tmp_path: Path
) -> None:
    process = await runtime.create(spec(tmp_path, "grep", "^SigIgn", "/proc/self/status"), print)
    await runtime.start(process, not_recorded)
    assert await runtime.watch(process) == Exit()
    ignored = int((await runtime.last_line(process)).split()[1], 16)
    assert ignored & 0x7FFFFFFF == 0  # 32 and more are the C library's own


async def test_an_instance_is_adopted_without_a_descriptor_and_its_end_is_noticed(
    runtime: ProcessRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = await runtime.create(spec(tmp_path, "sleep", "60"), print)
    await runtime.start(process, not_recorded)
    successor = ProcessRuntime(tmp_path, range(FIRST_PORT, FIRST_PORT + 100), {})
    exhausted = FailingCall(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
    with monkeypatch.context() as patch:
        patch.setattr(os, "pidfd_open", exhausted)
        adopted = await successor.adopt(process.spec, process.identity, process.port)
    assert exhausted.count
    assert await runtime.stop(process, 5) == Exit(signal=15)
    assert await successor.watch(adopted) == Exit(signal=15)


async def test_an_instance_gets_the_limit_of_open_files_that_the_box_got(
    runtime: ProcessRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descriptors, "_inherited", [200])
    process = await runtime.create(spec(tmp_path, "sh", "-c", "ulimit -S -n"), print)
    await runtime.start(process, not_recorded)
    assert await runtime.watch(process) == Exit()
    assert await runtime.last_line(process) == "200"


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\n", b"never", b"9" * 5000, b"-1\n", b"0\0\n"])
def test_an_exit_file_may_have_any_content(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "exit").write_bytes(content)
    assert shim.read_exit(tmp_path, 3, killed=False) == Exit(code=3)
    assert shim.read_exit(tmp_path, None, killed=False) == Exit(code=None)
