"""The fence by itself: shims under each shell that a host may have as /bin/sh, without a Box."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from bridge.box.fence import Fence
from bridge.box.runtimes import shim
from bridge.box.runtimes.base import Exit
from bridge.box.runtimes.groups import children, members
from tests.boxes import labelled
from tests.support import eventually

NOBODY: Final = 65534  # root may fork whatever its limit
FENCED: Final = Exit(signal=9, fenced=True)
USER: Final[dict[str, Any]] = (
    {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
)


@pytest.fixture(params=["dash", "bash", "busybox"])
def shell(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shims run under this shell, and as nobody."""
    found = shutil.which(request.param)
    if found is None:
        pytest.skip(f"there is no {request.param} on this host")
    # Each is called sh, as /bin/sh is: bash is stricter then.
    called = ["busybox", "sh"] if request.param == "busybox" else ["sh"]
    monkeypatch.setattr(shim, "_SHELL", called)
    spawn = functools.partial(shim._Shim, executable=found, **USER)
    monkeypatch.setattr(shim, "_Shim", spawn)


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
    popen = shim.spawn(directory, command, cwd=directory, env={"PATH": path}, fence=fence.path)
    try:
        assert popen.stdin is not None
        if USER:
            os.fchown(popen.stdin.fileno(), NOBODY, -1)  # elsewhere it is the Box's own user
        popen.stdin.write(b"go\n")
        popen.stdin.close()
        popen.stdin = None
        await eventually(lambda: shim.has_command(popen.pid) and len(children(popen.pid)) == 2)
        yield popen
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()


async def end(popen: subprocess.Popen[bytes], directory: Path, within: float = 10.0) -> Exit:
    """How the instance ended, once nothing of it is left."""
    await eventually(lambda: popen.poll() is not None, within=within, what="the shim has ended")
    await eventually(lambda: not labelled(str(directory)), within=within, what="all has ended")
    return shim.read_exit(directory, popen.returncode, killed=False)


def forbid_forks(pid: int) -> None:
    """As when the processes of its user, or of its control group, are as many as may be."""
    for member in members(pid):
        subprocess.run(["prlimit", "--pid", str(member), "--nproc=1:1"], check=False, **USER)
        limits = Path(f"/proc/{member}/limits")
        assert not limits.exists() or "Max processes             1 " in limits.read_text()


@pytest.mark.usefixtures("shell")
async def test_an_instance_ends_in_time_although_its_shim_cannot_fork(
    directory: Path, fence: Fence
) -> None:
    fence.extend(5.0)
    async with started(directory, fence, ["sleep", "60"]) as popen:
        forbid_forks(popen.pid)
        assert await end(popen, directory) == FENCED


@pytest.mark.usefixtures("shell")
async def test_an_instance_that_ends_by_itself_is_not_taken_for_a_fenced_one(
    directory: Path, fence: Fence
) -> None:
    fence.extend(60.0)
    door = directory / "door"
    wait = f"until test -e {door}; do sleep 0.1; done; exit 3"
    async with started(directory, fence, ["sh", "-c", wait]) as popen:
        door.touch()
        assert await end(popen, directory) == Exit(code=3)


@pytest.mark.usefixtures("shell")
async def test_the_fence_needs_nothing_of_the_path_of_an_instance(
    directory: Path, fence: Fence
) -> None:
    fence.extend(4.0)
    async with started(directory, fence, ["/bin/sleep", "60"], path="/nowhere") as popen:
        assert await end(popen, directory) == FENCED
    assert time.clock_gettime(time.CLOCK_BOOTTIME) >= int(fence.path.read_text()), "in its time"
