"""Images: here, or pulled once for all the instances that wait for one."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from typing import Final
from weakref import WeakValueDictionary

from bridge.box.runtimes.oci import commands as words
from bridge.box.runtimes.oci.parsing import complaint
from bridge.box.runtimes.oci.subprocess_calls import EngineCalls
from bridge.errors import InstanceError
from bridge.tasks import task_scope

_PATIENCE: Final = 1800.0  # seconds for a pull
_EVERY: Final = 1.0  # seconds between tellings: each is an event, and they are kept for days
_MOST: Final = 20  # tellings of one pull, of which more come ever more slowly


class ImagePulls:
    """The images of one engine."""

    def __init__(self, calls: EngineCalls) -> None:
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
        progress = _Progress()
        async with task_scope() as tasks:
            tasks.create_task(progress.tell(lambda line: tell(f"pulling image {image}: {line}")))
            answer = await self._calls.ask(["pull", image], within=_PATIENCE, tell=progress.take)
        if not answer.ok:
            raise InstanceError(f"image {image} cannot be pulled: {complaint(answer.err)}")
        tell(f"pulled image {image} in {time.monotonic() - started:.1f} s")


class _Progress:
    """Thins the lines of a pull out, to what is worth an event."""

    def __init__(self) -> None:
        self._last = ""

    def take(self, line: str) -> None:
        self._last = line

    async def tell(self, tell: Callable[[str], None]) -> None:
        """Tell the newest line now and then, if it is new; until cancelled."""
        told = ""
        for count in itertools.count():
            await asyncio.sleep(_EVERY * 2.0 ** max(0, count - _MOST))
            if self._last != told:
                told = self._last
                tell(told)
