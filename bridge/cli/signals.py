"""How SIGINT, SIGTERM and SIGHUP end a verb that runs until it is stopped.

A closed terminal sends SIGHUP: without a handler it would end the verb at once, and what the verb
had started would be left over.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Mapping
from typing import Any, Final

from bridge.cli.exit_codes import DONE, INTERRUPTED

_ENDING: Final = (signal.SIGINT, signal.SIGTERM)


async def wait_until_signal(
    work: asyncio.Task[Any],
    stop: Callable[[], bool],
    *,
    others: Mapping[signal.Signals, Callable[[], None]] | None = None,
) -> int:
    """Wait for the end of `work` and return the exit code. Its errors are left to its owner.

    The first signal calls `stop`, which returns whether `work` then ends by itself. If it does not,
    and at the second signal, `work` is cancelled. SIGHUP counts as such a signal, unless `others`
    have a handler for it. It stays ignored under nohup.
    """
    loop = asyncio.get_running_loop()
    signals = 0

    def on_signal() -> None:
        nonlocal signals
        signals += 1
        if signals > 1 or not stop():
            work.cancel()

    handlers = dict.fromkeys(_ENDING, on_signal)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        handlers[signal.SIGHUP] = on_signal
        handlers |= others or {}
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        await asyncio.wait([work])
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)
    return INTERRUPTED if signals > 1 and work.cancelled() else DONE
