"""A Box in a program that is the parent of orphans reaps them, and takes no exit code of others."""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bridge.box.daemon import Box
from bridge.box.runner.orphans import is_reaper
from bridge.bus.embedded_server import EmbeddedServer
from tests.boxes import serving
from tests.paths import HTTP_SERVICE
from tests.support import ask, box_config, connect, eventually, service_table

_SET_CHILD_SUBREAPER = 36


@contextlib.contextmanager
def _subreaper() -> Iterator[None]:
    """This process is the parent of orphans inside the block."""
    set_flag = ctypes.CDLL(None).prctl
    assert set_flag(_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    try:
        yield
    finally:
        assert set_flag(_SET_CHILD_SUBREAPER, 0, 0, 0, 0) == 0


def _ended_children() -> set[int]:
    ended = set()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if child.status() == psutil.STATUS_ZOMBIE:
                ended.add(child.pid)
    return ended


@pytest.mark.slow
async def test_a_box_as_a_library_reaps_orphans_and_leaves_other_children_alone(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    orphan = f"(sh -c 'echo $$ > {pid}.part; mv {pid}.part {pid}; sleep 0.1' &)"
    serve = f"exec {sys.executable} -S -E {HTTP_SERVICE} $PORT"
    service = service_table("web", command=["sh", "-c", f"{orphan}; {serve}"])
    assert not is_reaper()
    with _subreaper():
        assert is_reaper()
        async with (
            connect(server.url) as gateway,
            Box.running(box_config(tmp_path, server.url, service)),
        ):
            with subprocess.Popen(["sh", "-c", "exit 7"]) as own:
                await ask(gateway, "web", 1)
                await serving(gateway, "web", 1)
                await eventually(pid.exists, what="the orphan")
                left = int(pid.read_text())
                await eventually(lambda: left in _ended_children(), what="it is ours, and ended")
                assert own.pid in _ended_children()
                await eventually(lambda: left not in _ended_children(), what="it is reaped")
                assert own.wait() == 7, "a child of the program itself"
