"""Terminals in which a page's commands run, as a reader would type them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from bridge.tasks import task_scope
from tests.support import eventually

_DONE: Final = "command ended with"


class Terminal:
    """One shell, and everything that it has printed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.lines: list[str] = []
        self._process = process
        self._shown = 0
        self._running = False

    async def type(self, command: str, output: Sequence[str]) -> None:
        """Run `command`, once the one before has ended, and wait for the `output` of the page."""
        if self._running:
            await self.wait_for([f"{_DONE} 0"])
        self._running = True
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\necho {_DONE} $?\n".encode())
        await self._process.stdin.drain()
        await self.wait_for(output)

    async def wait_for(self, output: Sequence[str]) -> None:
        """Wait for lines of the form of `output`, in this order, others between them."""
        for expected in output:
            await eventually(
                functools.partial(self._shows, expected),
                within=60,
                what=f"{expected!r} is shown; so far: {self.lines[self._shown :]}",
            )

    async def read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            self.lines.append(line.decode().rstrip("\n"))

    def _shows(self, expected: str) -> bool:
        for number in range(self._shown, len(self.lines)):
            if form(self.lines[number]) == form(expected):
                self._shown = number + 1
                return True
        return False


def form(line: str) -> str:
    """`line` without what differs from run to run: ids, numbers, sizes, paths, blanks."""
    line = re.sub(r"\bweb-[a-z0-9]{10}\b", "ID", line)
    line = re.sub(r"\d+ [KMG]iB|\d+(\.\d+)? [KMG]iB|\d+%|–", "X", line)
    line = re.sub(r"\b\d+[smh]\b", "AGE", line)
    line = re.sub(r"/\S+/data\b", "PATH", line)
    return " ".join(re.sub(r"\d+", "N", line).split())


@contextlib.asynccontextmanager
async def terminals(directory: Path, env: Mapping[str, str]) -> AsyncIterator[Terminals]:
    """Terminals that open when used, in `directory`; all of them end with the block."""
    async with task_scope() as tasks:
        opened = Terminals(directory, env, tasks)
        try:
            yield opened
        finally:
            await opened.close()


class Terminals:
    """Terminals by their titles."""

    def __init__(self, directory: Path, env: Mapping[str, str], tasks: asyncio.TaskGroup) -> None:
        self._directory = directory
        self._env = env
        self._tasks = tasks
        self._opened: dict[str, tuple[Terminal, asyncio.subprocess.Process]] = {}

    async def get(self, title: str) -> Terminal:
        """The terminal of this title."""
        if title not in self._opened:
            process = await asyncio.create_subprocess_exec(
                "bash",
                cwd=self._directory,
                env=self._env,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
            terminal = Terminal(process)
            self._tasks.create_task(terminal.read(), name=title)
            self._opened[title] = terminal, process
        return self._opened[title][0]

    async def close(self) -> None:
        """Press Ctrl-C in each, and wait for its end."""
        for _, process in reversed(self._opened.values()):
            assert process.stdin is not None
            process.stdin.close()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
            try:
                async with asyncio.timeout(30):
                    await process.wait()
            except TimeoutError:
                os.killpg(process.pid, signal.SIGKILL)
                raise
