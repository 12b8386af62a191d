"""Images: present on the host, or pulled once for all instances that wait for them."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from typing import Final
from weakref import WeakValueDictionary

from bridge.box.runtimes.oci import commands, parsing
from bridge.box.runtimes.oci.subprocess_calls import EngineCalls
from bridge.errors import InstanceError
from bridge.tasks import task_scope

_PULL_TIMEOUT: Final = 1800.0  # seconds
_REPORT_EVERY: Final = 1.0  # seconds: each report is an event, and events are kept for days
_REPORTS: Final = 20  # reports of one pull at that rate; after that, the interval doubles each time


class ImagePulls:
    """The images of one engine."""

    def __init__(self, calls: EngineCalls) -> None:
        self._calls = calls
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def provide(self, image: str, report: Callable[[str], None]) -> None:
        """Return when `image` is on this host. `report` gets the progress of a pull.

        Raises InstanceError with the engine's reason if the image cannot be pulled.
        """
        if await self._is_present(image):
            return
        lock = self._locks.setdefault(image, asyncio.Lock())
        if lock.locked():
            report(f"waiting for image {image}, which is being pulled")
        async with lock:
            if not await self._is_present(image):
                await self._pull(image, report)

    async def _is_present(self, image: str) -> bool:
        return (await self._calls.call(commands.inspect_image(self._calls.engine.kind, image))).ok

    async def _pull(self, image: str, report: Callable[[str], None]) -> None:
        report(f"pulling image {image}")
        started = time.monotonic()
        progress = _Progress()
        async with task_scope() as tasks:
            tasks.create_task(progress.run(lambda line: report(f"pulling image {image}: {line}")))
            result = await self._calls.call(
                commands.pull(image), timeout=_PULL_TIMEOUT, on_line=progress.take
            )
        if not result.ok:
            reason = parsing.error_line(result.err)
            raise InstanceError(f"image {image} cannot be pulled: {reason}")
        report(f"pulled image {image} in {time.monotonic() - started:.1f} s")


class _Progress:
    """Reduces the lines of a pull to those that are worth an event."""

    def __init__(self) -> None:
        self._last = ""

    def take(self, line: str) -> None:
        self._last = line

    async def run(self, report: Callable[[str], None]) -> None:
        """Report the newest line at intervals, if it has changed; until cancelled."""
        previous = ""
        for count in itertools.count():
            await asyncio.sleep(_REPORT_EVERY * 2.0 ** max(0, count - _REPORTS))
            if self._last != previous:
                previous = self._last
                report(previous)
