"""The command line as a user has it: its output and its exit codes.

`run` calls it in this process, because most of the time of a process is its start. `running` starts
a process, for the verbs that signals end; `spawn` and `run_process` do so for what only a process
shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import re
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from unittest import mock

from bridge.cli import main
from tests.paths import REPOSITORY
from tests.support import eventually

_ONE_AT_A_TIME = threading.Lock()  # the directory, the environment and stdout are the process's


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Program:
    """A running `box-bridge`, and the lines that it has printed so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.out: list[str] = []
        self.err: list[str] = []

    async def read(self, stream: asyncio.StreamReader, lines: list[str]) -> None:
        while line := await stream.readline():
            lines.append(line.decode().rstrip("\n"))

    async def wait_for(self, pattern: str, *, within: float = 60) -> re.Match[str]:
        """The first line, of either stream, that matches."""
        return await eventually(
            lambda: next(filter(None, (re.search(pattern, x) for x in self.out + self.err)), None),
            within=within,
            what=f"{pattern!r} is printed; so far: {self.err + self.out}",
        )

    async def wait(self, within: float = 60) -> int:
        async with asyncio.timeout(within):
            return await self.process.wait()


def environment(**more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**kept, "TERM": "dumb", "COLUMNS": "160", **more}


async def run(*arguments: object, cwd: Path, **env: str) -> Result:
    """Run a verb that ends by itself, in a thread of this process."""
    return await asyncio.to_thread(_run, [*map(str, arguments)], cwd, env)


def _run(arguments: list[str], cwd: Path, env: dict[str, str]) -> Result:
    out, err = io.StringIO(), io.StringIO()
    with (
        _ONE_AT_A_TIME,
        contextlib.chdir(cwd),
        mock.patch.dict(os.environ, environment(**env), clear=True),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = main(arguments)
    return Result(code, out.getvalue(), err.getvalue())


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


async def run_process(*arguments: object, cwd: Path, **env: str) -> Result:
    """Run a verb that ends by itself, in a process of its own."""
    process = await spawn(*arguments, cwd=cwd, **env)
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode is not None
    assert b"Traceback" not in err, err.decode()
    return Result(process.returncode, out.decode(), err.decode())


async def run_shell(script: str, *arguments: object, cwd: Path, **env: str) -> Result:
    """Run a verb as the shell's `script` does, whose arguments are its command."""
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", script, "sh", sys.executable, "-m", "bridge.cli", *map(str, arguments)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=cwd,
        env=environment(PYTHONPATH=str(REPOSITORY), **env),
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode is not None
    return Result(process.returncode, out.decode(), err.decode())


@contextlib.asynccontextmanager
async def running(*arguments: object, cwd: Path, **env: str) -> AsyncIterator[Program]:
    process = await spawn(*arguments, cwd=cwd, **env)
    assert process.stdout is not None
    assert process.stderr is not None
    program = Program(process)
    async with asyncio.TaskGroup() as readers:
        readers.create_task(program.read(process.stdout, program.out))
        readers.create_task(program.read(process.stderr, program.err))
        try:
            yield program
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
