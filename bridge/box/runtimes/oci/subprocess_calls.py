"""Calling a container engine: every call has a deadline, and what is kept of its answer a limit.

Nothing here knows what is said. A call that is given up is killed with what it started; what the
engine has let go (a container, its monitor) lives in sessions of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from msgspec import Struct

from bridge.box.runtimes.oci.engines import Engine
from bridge.errors import EngineSilent, InstanceError
from bridge.tasks import task_scope

_LONGEST: Final = 64 << 20  # bytes of an answer; `inspect` says 10 KiB of each container
_LONGEST_WORDS: Final = 64 << 10  # bytes of complaints that are kept: the last ones
_CHUNK: Final = 64 << 10
_AT_ONCE: Final = 16  # of the calls that take turns
_CLOSING: Final = 1.0  # seconds for pipes to close after the call; a child may hold them open


class CallResult(Struct, frozen=True, kw_only=True):
    """How a call ended, and what it said."""

    code: int
    out: bytes
    err: str

    @property
    def ok(self) -> bool:
        return self.code == 0


class EngineCalls:
    """Calls to one engine. `patience` is the deadline in seconds of what should be quick."""

    def __init__(self, engine: Engine, environ: Mapping[str, str], patience: float) -> None:
        self.engine = engine
        self.patience = patience
        self._environ = environ
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def ask(
        self,
        words: Sequence[str],
        *,
        within: float | None = None,
        tell: Callable[[str], None] | None = None,
        last: int = 0,
    ) -> CallResult:
        """Call, and return what it said, whatever that was; or the `last` bytes of it, where it may
        be long. `tell` gets each line as it comes.

        Raises EngineSilent if there is no answer `within` so many seconds, and if there is no
        engine to call any more: whether the call took effect is unknown then.
        """
        patience = within or self.patience
        call = f"{self.engine.kind.name} {words[0]}"
        try:
            async with asyncio.timeout(patience):
                return await self._call(words, tell, last)
        except TimeoutError:
            raise EngineSilent(self.engine.name, call, f"no answer within {patience:g} s") from None
        except OSError as exc:
            raise EngineSilent(self.engine.name, call, f"cannot be run: {exc}") from exc

    async def make(self, words: Sequence[str], *, within: float, last: int = 0) -> CallResult:
        """The same for a call of which many may come at once: it takes its turn among those."""
        async with self._places:
            return await self.ask(words, within=within, last=last)

    async def _call(
        self, words: Sequence[str], tell: Callable[[str], None] | None, last: int
    ) -> CallResult:
        process = await asyncio.create_subprocess_exec(
            self.engine.path,
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(self._environ),
            start_new_session=True,  # a Ctrl-C is for the Box, which knows what to do
        )
        assert process.stdout is not None
        assert process.stderr is not None
        out = _PipeBuffer(last or _LONGEST, tell, last=bool(last))
        err = _PipeBuffer(last or _LONGEST_WORDS, tell, last=True)
        try:
            async with task_scope() as tasks:
                reads = [
                    tasks.create_task(out.read(process.stdout)),
                    tasks.create_task(err.read(process.stderr)),
                ]
                code = await process.wait()
                await asyncio.wait(reads, timeout=_CLOSING)
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
            _close(process)
        return CallResult(code=code, out=bytes(out.data), err=err.data.decode(errors="replace"))


class _PipeBuffer:
    """What is kept of one pipe: `limit` bytes, the `last` ones or else no more than these."""

    def __init__(
        self, limit: int, tell: Callable[[str], None] | None, *, last: bool = False
    ) -> None:
        self.data = bytearray()
        self._limit = limit
        self._tell = tell
        self._last = last
        self._line = b""

    async def read(self, pipe: asyncio.StreamReader) -> None:
        while chunk := await pipe.read(_CHUNK):
            self.data += chunk
            if len(self.data) > self._limit:
                if not self._last:
                    raise InstanceError(f"the engine's answer is longer than {self._limit} bytes")
                del self.data[: -self._limit]
            if self._tell:
                *lines, rest = (self._line + chunk).replace(b"\r", b"\n").split(b"\n")
                self._line = rest[-_CHUNK:]
                for line in lines:
                    if text := line.decode(errors="replace").strip():
                        self._tell(text)


def _close(process: asyncio.subprocess.Process) -> None:
    """Let go of pipes that a child of the call's may hold open."""
    transport = getattr(process, "_transport", None)
    if transport is not None:
        transport.close()
