"""A terminal of a chosen size in which `box-bridge` runs, as a person has it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import struct
import sys
import termios
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from tests.e2e.program import environment
from tests.paths import REPOSITORY
from tests.support import eventually

_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|[()][A-Z0-9]|[=>])")


class PseudoTerminal:
    """What a program has printed on its terminal; `hang_up` closes it."""

    def __init__(self, master: int, process: asyncio.subprocess.Process, encoding: str) -> None:
        self.process = process
        self.raw = b""
        self._master = master
        self._encoding = encoding
        os.set_blocking(master, False)

    def read(self) -> str:
        """Everything that was printed so far."""
        with contextlib.suppress(BlockingIOError, OSError):
            while data := os.read(self._master, 65536):
                self.raw += data
        return self.raw.decode(self._encoding)

    @property
    def lines(self) -> list[str]:
        """The lines that were printed, without the codes of the terminal."""
        return _ESCAPES.sub("", self.read()).replace("\r", "").splitlines()

    async def wait_for(self, text: str, *, within: float = 60) -> None:
        await eventually(
            lambda: any(text in line for line in self.lines),
            within=within,
            what=f"{text!r} is on the terminal: {self.lines}",
        )

    async def wait(self, within: float = 60) -> int:
        """The exit code."""
        await eventually(
            lambda: (self.read(), self.process.returncode is not None)[1],
            within=within,
            what=f"the program ends: {self.lines}",
        )
        self.read()
        assert self.process.returncode is not None
        return self.process.returncode

    def press_ctrl_c(self) -> None:
        os.write(self._master, b"\x03")

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def hang_up(self) -> None:
        """Close the terminal, as its window is closed."""
        os.close(self._master)
        self._master = -1

    def close(self) -> None:
        if self._master >= 0:
            os.close(self._master)


# The terminal must be the controlling one, so that it signals its program.
_CONTROL = "import fcntl,sys,termios;fcntl.ioctl(0,termios.TIOCSCTTY,0);"
_VERB = f"{_CONTROL}from bridge.cli import main;sys.exit(main(sys.argv[1:]))"
_PROGRAM = f"{_CONTROL}import os;os.execvp(sys.argv[1],sys.argv[1:])"


def on_terminal(
    *arguments: object, cwd: Path, columns: int = 80, rows: int = 24, **env: str
) -> contextlib.AbstractAsyncContextManager[PseudoTerminal]:
    """Run a verb on a terminal of this size."""
    return _terminal(_VERB, arguments, cwd, columns, rows, env)


def program_on_terminal(
    *command: object, cwd: Path, **env: str
) -> contextlib.AbstractAsyncContextManager[PseudoTerminal]:
    """Run another program, such as a shell, on a wide terminal."""
    return _terminal(_PROGRAM, command, cwd, 160, 24, env)


@contextlib.asynccontextmanager
async def _terminal(
    code: str,
    arguments: Sequence[object],
    cwd: Path,
    columns: int,
    rows: int,
    env: Mapping[str, str],
) -> AsyncIterator[PseudoTerminal]:
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    variables = environment(PYTHONPATH=str(REPOSITORY), **{"TERM": "xterm", **env})
    del variables["COLUMNS"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, *map(str, arguments)),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=cwd,
        env=variables,
        start_new_session=True,
    )
    os.close(slave)
    terminal = PseudoTerminal(master, process, env.get("PYTHONIOENCODING", "utf-8"))
    try:
        yield terminal
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        terminal.close()
