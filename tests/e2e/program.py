"""The command line as a user has it: real processes, their output, their exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.paths import REPOSITORY
from tests.support import eventually


class Finished:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Running:
    """A `box-bridge` that runs on, and what it has said so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.out: list[str] = []
        self.err: list[str] = []

    async def read(self, stream: asyncio.StreamReader, lines: list[str]) -> None:
        while line := await stream.readline():
            lines.append(line.decode().rstrip("\n"))

    async def said(self, pattern: str, *, within: float = 20) -> re.Match[str]:
        """The first line, of either stream, that matches."""
        return await eventually(
            lambda: next(filter(None, (re.search(pattern, x) for x in self.out + self.err)), None),
            within=within,
            what=f"{pattern!r} is said; so far: {self.err + self.out}",
        )

    async def ended(self, within: float = 20) -> int:
        async with asyncio.timeout(within):
            return await self.process.wait()


def environment(**more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**kept, "TERM": "dumb", "COLUMNS": "160", **more}


async def spawn(*arguments: object, cwd: Path, **env: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bridge.cli",
        *map(str, arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=cwd,
        env=environment(PYTHONPATH=str(REPOSITORY), **env),
    )


async def run(*arguments: object, cwd: Path, **env: str) -> Finished:
    process = await spawn(*arguments, cwd=cwd, **env)
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode is not None
    assert b"Traceback" not in err, err.decode()
    return Finished(process.returncode, out.decode(), err.decode())


@asynccontextmanager
async def running(*arguments: object, cwd: Path, **env: str) -> AsyncIterator[Running]:
    process = await spawn(*arguments, cwd=cwd, **env)
    assert process.stdout is not None
    assert process.stderr is not None
    program = Running(process)
    async with asyncio.TaskGroup() as readers:
        readers.create_task(program.read(process.stdout, program.out))
        readers.create_task(program.read(process.stderr, program.err))
        try:
            yield program
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
