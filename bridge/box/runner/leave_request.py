"""The request that an instance leaves: drains and ends."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from bridge.tasks import run_unless

_START_PATIENCE: Final = 10.0  # seconds that a start waits for the journal
T = TypeVar("T")


class LeaveRequest:
    """Set once; the first `reason` counts, and the instance's events carry it."""

    def __init__(self) -> None:
        self.reason = ""
        self._made = asyncio.Event()

    def make(self, reason: str) -> None:
        if not self._made.is_set():
            self.reason = reason
            self._made.set()

    @property
    def is_made(self) -> bool:
        return self._made.is_set()

    async def wait(self) -> None:
        """Return when the request is made."""
        await self._made.wait()

    async def run_unless_made(self, work: Coroutine[Any, Any, T]) -> T | None:
        """The result of `work`; None if the request is made first, which cancels `work`."""
        return await run_unless(self._made, work)

    async def wait_written(self, writing: Coroutine[Any, Any, None]) -> None:
        """Return when `writing` has ended, or the instance leaves: also because its host has not
        been able to write its journal for a while. Another host can take its slot then.
        """
        try:
            async with asyncio.timeout(_START_PATIENCE):
                await self.run_unless_made(writing)
        except TimeoutError:
            self.make("its host cannot write its journal")
