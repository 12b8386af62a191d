"""A program of the bench in a process of its own: a Box, or an echo.

It reads its task as one line of JSON and prints a line when it is ready. When its stdin ends,
however its owner ends, it ends too.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

from bridge.errors import ServerNotStarted


@contextlib.asynccontextmanager
async def running(module: str, task: bytes, *, what: str, patience: float) -> AsyncIterator[int]:
    """Run `module` with its `task`, ready when the block begins; yields its pid.

    Raises ServerNotStarted, in which `what` names it, if it ends by itself before.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # a Ctrl-C is for the owner
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(task + b"\n")
        async with asyncio.timeout(patience):
            if not await process.stdout.readline():
                raise ServerNotStarted(f"{what} ended by itself")
        yield process.pid
    finally:
        process.stdin.close()
        await process.wait()


async def serve_owner() -> None:
    """Report that this program is ready; return when its owner ends it."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
