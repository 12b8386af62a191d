"""A Box whose death is part of a test, and what must be true whatever befell it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.errors import BusError
from tests.boxes import labelled, serving
from tests.faults.history import History
from tests.support import TIMING, ask, box_config, connect, eventually


class Killable:
    """A Box in a process of its own, whose death is part of the test."""

    def __init__(self, directory: Path, *command: str, name: str = "box-a") -> None:
        self.name = name
        self.instances = directory / f"data-{name}" / "instances"
        self._command = [sys.executable, "-m", *command]
        self._log = directory / f"{name}.log"
        self.start()

    def start(self) -> None:
        """Start it, or start it again."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stderr=log)

    async def died(self) -> None:
        """Return when the process was killed; fails if it ended in any other way."""
        await eventually(lambda: self.process.poll() is not None, what="the Box dies")
        assert self.process.returncode == -signal.SIGKILL, "the fault did not fire"

    async def kill(self) -> None:
        self.process.kill()
        await self.died()

    def end(self) -> None:
        """Kill it with all its instances."""
        self.process.kill()
        self.process.wait()
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):  # some end with those they belong to
                os.kill(pid, signal.SIGKILL)

    def pids(self) -> set[int]:
        """All processes of its instances."""
        found = self.instances.iterdir() if self.instances.exists() else ()
        return {pid for path in found for pid in labelled(str(path))}


@asynccontextmanager
async def killable(
    server: EmbeddedServer, directory: Path, *services: str, point: str = "", timing: str = TIMING
) -> AsyncIterator[tuple[Connection, Killable]]:
    """A Box that can be killed, or dies by itself at `point`, and a gateway's connection."""
    box_config(directory, server.url, *services, on_exit="leave", timing=timing)
    file = str(directory / "box-a.toml")
    box = (
        Killable(directory, "tests.faults.failing_box", file, point)
        if point
        else Killable(directory, "bridge.cli", "box", "-c", file)
    )
    try:
        async with connect(server.url) as gateway:
            yield gateway, box
    finally:
        box.end()


async def scaled(gateway: Connection, replicas: int) -> None:
    """Ask until it is acknowledged."""

    async def acknowledged() -> bool:
        try:
            answer = await ask(gateway, "web", replicas, request_id=f"to-{replicas}", timeout=1.0)
        except BusError:
            return False
        return answer.accepted

    await eventually(acknowledged, what=f"scaling to {replicas} is acknowledged")


async def check(gateway: Connection, box: Killable, replicas: int) -> History:
    """So many serve, their chains and all others are whole, and nothing else runs."""
    there = await serving(gateway, "web", replicas)
    while not all(labelled(str(box.instances / info.id)) for info in there):
        there = await serving(gateway, "web", replicas)  # a dead one may not be reported yet
    known = {pid for info in there for pid in labelled(str(box.instances / info.id))}
    await eventually(lambda: box.pids() <= known, what="nothing runs that nobody knows")
    history = await History.settled(gateway, there)
    history.check()
    return history
