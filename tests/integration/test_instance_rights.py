"""What an instance of the process runtime may do, and what its files can do to the Box."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import pytest

from bridge import process_rights
from bridge.box.daemon import Box
from bridge.box.runtimes.base import Exit, Spec
from bridge.box.runtimes.environment import inherited_environment
from bridge.box.runtimes.process import shim
from bridge.box.runtimes.process.account import check_accounts
from bridge.box.runtimes.process.runtime import ProcessRuntime
from bridge.box.runtimes.process_identity import ProcessIdentity
from bridge.bus.embedded_server import EmbeddedServer
from bridge.config import load
from bridge.errors import ConfigError
from tests.support import FIRST_PORT, box_config, eventually, service_table

USER: Final = "nobody"
_GET_DUMPABLE: Final = 3  # linux/prctl.h
as_root = pytest.mark.skipif(not process_rights.can_change_user(), reason="needs root")


@pytest.fixture
def root() -> Iterator[Path]:
    """A directory that every user can reach: pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name) / "data" / "instances"


@pytest.fixture
async def runtime(root: Path) -> AsyncIterator[ProcessRuntime]:
    root.parent.mkdir()
    runtime = runtime_at(root)
    yield runtime
    await runtime.end_all()


def runtime_at(root: Path) -> ProcessRuntime:
    environ = {"PATH": "/usr/bin:/bin", "HOME": "/the-home-of-the-box"}
    return ProcessRuntime(root, range(FIRST_PORT, FIRST_PORT + 100), environ)


def spec(root: Path, script: str, user: str = "") -> Spec:
    return Spec(
        instance_id="web-a",
        service="web",
        command=["/bin/sh", "-c", script],
        cwd="/",
        env={},
        vcpus=None,
        memory_mib=None,
        image=None,
        port=0,
        directory=root / "web-a",
        user=user,
    )


async def not_recorded(identity: ProcessIdentity, port: int) -> None:
    """In place of a journal: nothing is recorded."""


async def output(runtime: ProcessRuntime, spec: Spec) -> list[str]:
    """The lines that the instance wrote, once it has ended."""
    process = await runtime.create(spec, print)
    await runtime.start(process, not_recorded)
    await runtime.watch(process)
    return (spec.directory / "stdout.log").read_text().splitlines()


RIGHTS: Final = "grep -E '^(Cap|NoNewPrivs)' /proc/self/status"


@pytest.mark.parametrize("user", ["", pytest.param(USER, marks=as_root)])
async def test_an_instance_has_no_capability_and_cannot_get_one(
    runtime: ProcessRuntime, root: Path, user: str
) -> None:
    lines = await output(runtime, spec(root, RIGHTS, user))
    rights = dict(line.split() for line in lines)
    assert rights.pop("NoNewPrivs:") == "1"
    if user:  # its user can use nothing of the bounding set
        rights.pop("CapBnd:")
    if os.geteuid():  # only root may lower the bounding set
        rights.pop("CapBnd:", None)
    assert set(rights.values()) == {"0" * 16}


@pytest.mark.parametrize(
    ("file", "trick"),
    [
        ("exit", "mkfifo {0}"),
        ("stderr.log", "mkfifo {0}"),
        *(
            pytest.param(file, trick, marks=pytest.mark.slow)
            for file in ("exit", "stdout.log", "stderr.log")
            for trick in ("ln -s /dev/zero {0}", "mkdir {0}", "ln -f $0 {0}", "mkfifo {0}")
        ),
    ],
)
async def test_a_file_that_an_instance_replaces_does_not_hold_its_box(
    runtime: ProcessRuntime, root: Path, file: str, trick: str
) -> None:
    path = f"$BOX_INSTANCE_DIR/../{file}"
    replace = f"rm {path}; {trick.format(path)}; kill -9 $PPID; exit 1"
    process = await runtime.create(spec(root, replace), print)
    await runtime.start(process, not_recorded)
    assert await runtime.watch(process) == Exit(signal=9)
    assert await runtime.last_line(process) == ""
    successor = runtime_at(root)
    adopted = await successor.adopt(process.spec, None, 0)
    end = await successor.watch(adopted)
    assert end == Exit(code=None)


async def test_an_exit_that_an_instance_forges_is_not_believed(
    runtime: ProcessRuntime, root: Path
) -> None:
    for forged in ("0", "never", "fenced"):
        script = f"echo {forged} >$BOX_INSTANCE_DIR/../exit; kill -9 $PPID; sleep 60"
        process = await runtime.create(spec(root, script), print)
        await runtime.start(process, not_recorded)
        assert await runtime.watch(process) == Exit(signal=9)


@as_root
async def test_a_service_runs_as_its_user_in_a_directory_of_its_own(
    runtime: ProcessRuntime, root: Path
) -> None:
    script = "id -un; echo $USER $HOME; cd $BOX_INSTANCE_DIR && touch mine && ls; umask"
    name, variables, *files = await output(runtime, spec(root, script, USER))
    assert name == USER
    assert variables.split()[0] == USER
    assert "/the-home-of-the-box" not in variables
    assert files[0] == "mine"


ATTEMPTS: Final = (
    *("cat $D/exit", "cat $D/stdout.log", "echo 0 >$D/exit", "rm -f $D/exit", "mkfifo $D/x"),
    *("mv $D/files $D/other", "ls $D", "ls $D/..", "cat /proc/$PPID/environ"),
    *("kill -9 $PPID", "echo 1 >/proc/$PPID/fd/4", "touch $D/../../fence"),
)


@as_root
async def test_an_instance_of_another_user_reaches_nothing_of_its_box(
    runtime: ProcessRuntime, root: Path
) -> None:
    tries = "\n".join(
        f"({attempt}) >/dev/null 2>&1 && echo reached: '{attempt}'" for attempt in ATTEMPTS
    )
    script = f"D=$BOX_INSTANCE_DIR/..\n{tries}\nexit 5"
    process = await runtime.create(spec(root, script, USER), print)
    await runtime.start(process, not_recorded)
    assert await runtime.watch(process) == Exit(code=5)
    assert (process.spec.directory / "stdout.log").read_text() == ""
    names = {file.name for file in process.spec.directory.iterdir()}
    assert names == {"exit", "files", "stderr.log", "stdout.log"}


@as_root
async def test_an_instance_of_another_user_is_stopped_and_its_next_box_knows_its_end(
    runtime: ProcessRuntime, root: Path
) -> None:
    process = await runtime.create(
        spec(root, "trap 'exit 9' TERM; echo up; sleep 60 & wait", USER), print
    )
    await runtime.start(process, not_recorded)
    log = process.spec.directory / "stdout.log"
    await eventually(lambda: log.read_text() == "up\n", what="it runs")
    successor = runtime_at(root)
    assert await runtime.stop(process, 10) == Exit(code=9)
    adopted = await successor.adopt(process.spec, process.identity, process.port)
    assert await successor.watch(adopted) == Exit(code=9)


@as_root
def test_a_box_whose_python_instances_may_not_read_does_not_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads = process_rights.RestrictedThreads()
    assert shim.start_blocker(threads) is None
    with tempfile.TemporaryDirectory() as home:
        os.chown(home, 65534, 65534)
        Path(home).chmod(0o700)
        (Path(home) / "python").symlink_to(sys.executable)
        monkeypatch.setattr(sys, "executable", f"{home}/python")
        assert "install box-bridge where its user may read it" in (
            shim.start_blocker(threads) or ""
        )


def test_a_user_that_does_not_exist_is_refused_at_the_start(tmp_path: Path) -> None:
    config = box_config(tmp_path, "nats://127.0.0.1:1", service_table("web", user="no-such-user"))
    with pytest.raises(ConfigError, match="no such user"):
        check_accounts(config)


def test_a_box_that_may_not_change_users_refuses_a_service_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_rights, "can_change_user", lambda: False)
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000)
    config = box_config(tmp_path, "nats://127.0.0.1:1", service_table("web", user=USER))
    with pytest.raises(ConfigError, match="run it as root, or with CAP_SETUID"):
        check_accounts(config)


def test_instances_inherit_only_what_is_listed(tmp_path: Path) -> None:
    file = tmp_path / "box.toml"
    file.write_text('[box]\nname = "box-a"\ninherit_env = ["MINE"]\n' + service_table("web"))
    secrets = {"AWS_SECRET_ACCESS_KEY": "s", "NATS_PASSWORD": "s", "HTTPS_PROXY": "http://u:s@p"}
    needed = {"PATH": "/bin", "HOME": "/h", "LANG": "C", "LC_ALL": "C", "TZ": "UTC", "MINE": "1"}
    config = load(file, environ=secrets | needed)
    assert inherited_environment(config) == needed


async def test_no_process_of_its_user_may_look_into_a_box(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    libc = ctypes.CDLL(None)
    async with Box.running(box_config(tmp_path, server.url)):
        assert libc.prctl(_GET_DUMPABLE, 0, 0, 0, 0) == 0
