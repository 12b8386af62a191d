"""How SIGINT and SIGTERM end a verb that runs until it is stopped."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Any

from bridge.cli.exit_codes import DONE, INTERRUPTED


async def wait_until_signal(work: asyncio.Task[Any], stop: Callable[[], bool]) -> int:
    """Wait for the end of `work` and return the exit code. Its errors are left to its owner.

    The first signal calls `stop`, which returns whether `work` then ends by itself. If it does not,
    and at the second signal, `work` is cancelled.
    """
    loop = asyncio.get_running_loop()
    signals = 0

    def on_signal() -> None:
        nonlocal signals
        signals += 1
        if signals > 1 or not stop():
            work.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    try:
        await asyncio.wait([work])
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
    return INTERRUPTED if signals > 1 and work.cancelled() else DONE
