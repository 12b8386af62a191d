"""Calls to a container engine, as subprocesses: each has a deadline, and its output has a limit.

This module does not know what the arguments mean. A call that is given up is killed, together with
what it started; a container and its monitor live in sessions of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from msgspec import Struct

from bridge.box.runtimes.foreign_errors import FOREIGN, describe
from bridge.box.runtimes.oci.engines import Engine
from bridge.errors import EngineSilent, InstanceError
from bridge.tasks import task_scope

_MAX_OUTPUT: Final = 64 << 20  # bytes of stdout; `inspect` prints 10 KiB for each container
_KEEP_ERRORS: Final = 64 << 10  # bytes of stderr that are kept: the last ones
_CHUNK: Final = 64 << 10
_CONCURRENT: Final = 16  # calls of `call_in_turn` that run at once
_CLOSE_TIMEOUT: Final = 1.0  # seconds for pipes to close after the call; a child may hold them open


class CallResult(Struct, frozen=True, kw_only=True):
    """The exit code and the output of a call."""

    code: int
    out: bytes
    err: str
    raw_err: bytes = b""

    @property
    def ok(self) -> bool:
        return self.code == 0


class EngineCalls:
    """Calls to one engine. `timeout` is the default deadline, in seconds."""

    def __init__(self, engine: Engine, environ: Mapping[str, str], timeout: float) -> None:
        self.engine = engine
        self.timeout = timeout
        self._environ = environ
        self._turns = asyncio.Semaphore(_CONCURRENT)

    async def call(
        self,
        arguments: Sequence[str],
        *,
        timeout: float | None = None,
        on_line: Callable[[str], None] | None = None,
        last: int = 0,
    ) -> CallResult:
        """Call the engine and return its output, whatever the exit code.

        With `last`, only the last so many bytes of stdout and stderr are kept. `on_line` gets each
        line as it comes. Raises EngineSilent if the engine does not answer in time, or cannot be
        run now: whether the call took effect is unknown, and another try may succeed. Raises
        InstanceError if the arguments cannot be passed, or if the output exceeds 64 MiB.
        """
        seconds = timeout or self.timeout
        command = f"{self.engine.kind.name} {arguments[0]}"
        try:
            async with asyncio.timeout(seconds):
                return await self._call(arguments, on_line, last)
        except TimeoutError as exc:
            reason = f"no answer within {seconds:g} s"
            raise EngineSilent(self.engine.name, command, reason) from exc
        except OSError as exc:
            reason = f"cannot be run: {describe(exc)}"
            raise EngineSilent(self.engine.name, command, reason) from exc
        except FOREIGN as exc:  # a NUL byte in an argument, for example: no later call succeeds
            raise InstanceError(f"{command}: {describe(exc)}") from exc

    async def call_in_turn(
        self, arguments: Sequence[str], *, timeout: float, last: int = 0
    ) -> CallResult:
        """`call`, at most 16 at once: for calls that many instances make at the same time."""
        async with self._turns:
            return await self.call(arguments, timeout=timeout, last=last)

    async def _call(
        self, arguments: Sequence[str], on_line: Callable[[str], None] | None, last: int
    ) -> CallResult:
        process = await asyncio.create_subprocess_exec(
            self.engine.path,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(self._environ),
            start_new_session=True,  # a Ctrl-C is for the Box, not for the engine
        )
        assert process.stdout is not None
        assert process.stderr is not None
        out = _PipeBuffer(last or _MAX_OUTPUT, on_line, last=bool(last))
        err = _PipeBuffer(last or _KEEP_ERRORS, on_line, last=True)
        try:
            async with task_scope() as tasks:
                reads = [
                    tasks.create_task(out.read(process.stdout)),
                    tasks.create_task(err.read(process.stderr)),
                ]
                code = await process.wait()
                await asyncio.wait(reads, timeout=_CLOSE_TIMEOUT)
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
            _close(process)
        return CallResult(
            code=code,
            out=bytes(out.data),
            err=err.data.decode(errors="replace"),
            raw_err=bytes(err.data),
        )


class _PipeBuffer:
    """The output of one pipe: the `last` `limit` bytes, or all of at most `limit` bytes."""

    def __init__(
        self, limit: int, on_line: Callable[[str], None] | None, *, last: bool = False
    ) -> None:
        self.data = bytearray()
        self._limit = limit
        self._on_line = on_line
        self._last = last
        self._line = b""

    async def read(self, pipe: asyncio.StreamReader) -> None:
        while chunk := await pipe.read(_CHUNK):
            self.data += chunk
            if len(self.data) > self._limit:
                if not self._last:
                    raise InstanceError(f"the engine's answer is longer than {self._limit} bytes")
                del self.data[: -self._limit]
            if self._on_line:
                *lines, rest = (self._line + chunk).replace(b"\r", b"\n").split(b"\n")
                self._line = rest[-_CHUNK:]
                for line in lines:
                    if text := line.decode(errors="replace").strip():
                        self._on_line(text)


def _close(process: asyncio.subprocess.Process) -> None:
    """Close pipes that a child of the call may hold open."""
    transport = getattr(process, "_transport", None)
    if transport is not None:
        transport.close()
