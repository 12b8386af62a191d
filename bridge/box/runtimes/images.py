"""Images: here, or pulled once for all the instances that wait for one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final
from weakref import WeakValueDictionary

from bridge.box.runtimes import engine_words as words
from bridge.box.runtimes.engine_answers import complaint
from bridge.box.runtimes.engine_calls import Calls
from bridge.errors import InstanceError

_PATIENCE: Final = 1800.0  # seconds for a pull
_EVERY: Final = 2.0  # seconds between tellings: each is an event, and they are kept for days
_MOST: Final = 20  # tellings of one pull; those after that come ever more slowly


class Images:
    """The images of one engine."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def provide(self, image: str, tell: Callable[[str], None]) -> None:
        """Return when `image` is here. While it is pulled, `tell` gets how far that has come.

        Raises InstanceError with the engine's reason if it cannot be pulled.
        """
        if await self._is_here(image):
            return
        turn = self._turns.setdefault(image, asyncio.Lock())
        if turn.locked():
            tell(f"waiting for image {image}, which is being pulled")
        async with turn:
            if not await self._is_here(image):
                await self._pull(image, tell)

    async def _is_here(self, image: str) -> bool:
        kind = self._calls.engine.kind
        return (await self._calls.ask(words.look_at_image(kind, image))).ok

    async def _pull(self, image: str, tell: Callable[[str], None]) -> None:
        tell(f"pulling image {image}")
        started = time.monotonic()
        progress = Progress(lambda line: tell(f"pulling image {image}: {line}"))
        answer = await self._calls.ask(
            ["pull", image], within=_PATIENCE, tell=lambda line: progress.at(line, time.monotonic())
        )
        if not answer.ok:
            raise InstanceError(f"image {image} cannot be pulled: {complaint(answer.err)}")
        tell(f"pulled image {image} in {time.monotonic() - started:.1f} s")


class Progress:
    """Thins the lines of a pull out, to what is worth an event."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._told = 0
        self._last = ""
        self._due = float("-inf")

    def at(self, line: str, now: float) -> None:
        """A line that the engine said at `now`, in seconds of any clock that does not go back."""
        if now < self._due or line == self._last:
            return
        self._told += 1
        self._last = line
        self._due = now + _EVERY * 2.0 ** max(0, self._told - _MOST)
        self._tell(line)
