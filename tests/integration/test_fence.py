"""The fence by itself: shims under each shell that a host may have as /bin/sh, without a Box."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import pytest

from bridge.box.fleet.fence import Fence
from bridge.box.fleet.host_record import offers
from bridge.box.runtimes.base import Exit
from bridge.box.runtimes.process import exec_command, shim
from bridge.box.runtimes.process.process_groups import children
from bridge.errors import ConfigError
from tests.boxes import labelled
from tests.support import box_config, eventually, service_table

NOBODY: Final = 65534  # root may fork whatever its limit
FENCED: Final = Exit(signal=9, fenced=True)
USER: Final[dict[str, Any]] = (
    {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
)


NOWHERE: Final = {exec_command.EXIT: b"1"}


@pytest.fixture(params=["dash", "bash", "busybox"])
def shell(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shims run under this shell, and as nobody."""
    path = shutil.which(request.param)
    if path is None:
        pytest.skip(f"there is no {request.param} on this host")
    # Each is called sh, as /bin/sh is: bash is stricter then.
    called = ["busybox", "sh"] if request.param == "busybox" else ["sh"]
    monkeypatch.setattr(shim, "_SHELL", called)
    popen = shim._Shim

    def spawn(command: Sequence[str], *, stdout: int, **options: Any) -> subprocess.Popen[bytes]:
        if USER and stdout >= 0:  # the guard's pipe; elsewhere it is the Box's own user
            os.fchown(stdout, NOBODY, -1)
        return popen(command, executable=path, stdout=stdout, **options, **USER)

    monkeypatch.setattr(shim, "_Shim", spawn)
    monkeypatch.setattr(shim, "_EXEC_COMMAND", exec_command_of_nobody())


def exec_command_of_nobody() -> tuple[str, ...]:
    """The program that becomes the command, under a Python that nobody may run."""
    for python in filter(None, (sys.executable, shutil.which("python3", path="/usr/bin:/bin"))):
        command = (python, "-I", "-S", str(exec_command.__file__))
        with contextlib.suppress(OSError):
            done = subprocess.run(command, input=b"", env=NOWHERE, start_new_session=True, **USER)
            if done.returncode == -signal.SIGKILL:  # it has read the end of its input
                return command
    pytest.skip("no Python on this host may be run by nobody")


@pytest.fixture
def directory() -> Iterator[Path]:
    """An instance's directory, open to nobody: pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.fixture
def fence(directory: Path) -> Fence:
    return Fence(directory / "fence")


@contextlib.asynccontextmanager
async def started(
    directory: Path, fence: Fence, command: Sequence[str], path: str = "/usr/bin:/bin"
) -> AsyncIterator[subprocess.Popen[bytes]]:
    """The shim of a fenced instance, once both its guard and the command are there."""
    for name in ("stdout.log", "stderr.log", "exit"):
        (directory / name).touch()
    if USER:  # elsewhere it is the Box's own user
        for file in directory.iterdir():
            os.chown(file, NOBODY, -1)
    popen = shim.spawn(directory, command, cwd=directory, env={"PATH": path}, fence=fence.path)
    try:
        assert popen.stdin is not None
        popen.stdin.write(b"go\n")
        popen.stdin.close()
        popen.stdin = None
        await eventually(
            lambda: shim.command_pid(popen.pid) is not None and len(children(popen.pid)) == 2
        )
        yield popen
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()


async def end(popen: subprocess.Popen[bytes], directory: Path, within: float = 60.0) -> Exit:
    """How the instance ended, once nothing of it is left."""
    await eventually(lambda: popen.poll() is not None, within=within, what="the shim has ended")
    await eventually(lambda: not labelled(str(directory)), within=within, what="all has ended")
    return shim.read_exit(directory, popen.returncode, killed=False)


def forbid_forks(shim: int) -> None:
    """As when the processes of its user, or of its control group, are as many as may be."""
    for pid in (shim, *sorted(children(shim), reverse=True)):  # the guard last: it may end at that
        subprocess.run(["prlimit", "--pid", str(pid), "--nproc=1:1"], check=True, **USER)


@pytest.mark.usefixtures("shell")
async def test_an_instance_that_ends_by_itself_does_not_count_as_fenced(
    directory: Path, fence: Fence
) -> None:
    fence.extend(60.0)
    door = directory / "door"
    wait = f"until test -e {door}; do sleep 0.1; done; exit 3"
    async with started(directory, fence, ["sh", "-c", wait]) as popen:
        door.touch()
        assert await end(popen, directory) == Exit(code=3)


@pytest.fixture
def clock(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of /proc/uptime, as in a container with its own: 100 s after its start."""
    clock = directory / "uptime"
    clock.write_text("100.00 50.00\n")
    monkeypatch.setattr("bridge.box.fleet.fence.UPTIME", clock)
    monkeypatch.setattr(shim, "_SCRIPT", shim._SCRIPT.replace("/proc/uptime", str(clock)))
    return clock


@pytest.mark.usefixtures("shell")
async def test_the_box_and_its_shims_use_one_clock(
    directory: Path, fence: Fence, clock: Path
) -> None:
    fence.extend(60.0)
    async with started(directory, fence, ["sleep", "60"]) as popen:
        replace_text(clock, "158.99 80.00\n")
        assert popen.poll() is None
        replace_text(clock, "159.00 80.00\n")
        assert await end(popen, directory) == FENCED


@pytest.mark.usefixtures("shell")
async def test_an_instance_ends_in_time_although_its_shim_cannot_fork(
    directory: Path, fence: Fence, clock: Path
) -> None:
    fence.extend(60.0)
    async with started(directory, fence, ["sleep", "60"]) as popen:
        forbid_forks(popen.pid)
        assert popen.poll() is None
        replace_text(clock, "159.00 80.00\n")
        assert await end(popen, directory) == FENCED


@pytest.mark.usefixtures("shell")
async def test_the_fence_works_whatever_the_path_of_an_instance(
    directory: Path, fence: Fence, clock: Path
) -> None:
    fence.extend(60.0)
    async with started(directory, fence, ["/bin/sleep", "60"], path="/nowhere") as popen:
        replace_text(clock, "159.00 80.00\n")
        assert await end(popen, directory) == FENCED


@pytest.mark.slow
@pytest.mark.usefixtures("shell")
async def test_a_fence_lasts_as_long_as_it_was_extended(directory: Path, fence: Fence) -> None:
    fence.extend(8.0)
    async with started(directory, fence, ["sleep", "60"]) as popen:
        assert await end(popen, directory) == FENCED
    assert time.clock_gettime(time.CLOCK_BOOTTIME) >= int(fence.path.read_text().split()[0])


def replace_text(file: Path, text: str) -> None:
    """Replace the file in one step: a reader gets the old text or the new one."""
    part = file.with_suffix(".new")
    part.write_text(text)
    part.replace(file)


@pytest.mark.parametrize("text", [None, "", "soon"])
def test_a_host_without_a_clock_refuses_fenced_services(
    tmp_path: Path, clock: Path, text: str | None
) -> None:
    clock.unlink() if text is None else clock.write_text(text)
    assert offers(box_config(tmp_path, "nats://127.0.0.1:1", service_table("web")))
    fenced = box_config(tmp_path, "nats://127.0.0.1:1", service_table("web", fence=True))
    with pytest.raises(ConfigError, match=rf"\[services.web\]: fence = true needs {clock}"):
        offers(fenced)


def test_a_fence_is_not_extended_while_the_clock_cannot_be_read(
    clock: Path, fence: Fence, caplog: pytest.LogCaptureFixture
) -> None:
    fence.extend(60.0)
    clock.unlink()
    fence.extend(120.0)
    assert fence.path.read_text() == "000000000159\n" * 2
    assert "fenced instances will end" in caplog.text


def test_a_fence_is_extended_while_the_disk_is_full_and_no_descriptor_is_left(
    fence: Fence, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fence.extend(60.0)
    before = int(fence.path.read_text().split()[0])

    def exhausted(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", exhausted)
        patched.setattr(os, "open", exhausted)
        fence.extend(120.0)
    first, second = fence.path.read_text().split()
    assert first == second
    assert 59 <= int(first) - before <= 90
    assert caplog.text == ""


def test_a_deleted_fence_is_made_again(fence: Fence) -> None:
    fence.extend(60.0)
    fence.path.unlink()
    fence.extend(60.0)
    assert fence.path.read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("shell")
async def test_an_instance_survives_thousands_of_writes_of_its_fence(
    directory: Path, fence: Fence
) -> None:
    fence.extend(60.0)
    async with started(directory, fence, ["sleep", "60"]) as popen:
        deadline = time.monotonic() + 4.0
        left = 999.0
        while time.monotonic() < deadline:
            left = 1_000_000.0 - left  # most digits change
            fence.extend(left)
            await asyncio.sleep(0)
        assert popen.poll() is None
