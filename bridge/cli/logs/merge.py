"""Several logs as one, in the order of their times.

A part is asked for when the lines before it are used, so that no more than a part of each log is
held, and a reader that is slow makes no Box wait or buffer.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Final

from bridge.cli.logs.source import Ask, Line, Source
from bridge.errors import BridgeError
from bridge.log_protocol import MAX_READS, LogsRequest
from bridge.tasks import task_scope

_POLL: Final = 0.2  # seconds between two looks while lines come
_SLOWEST: Final = 1.0  # seconds between two looks while none come
_RELIST: Final = 2.0  # seconds between two looks for new instances

Discover = Callable[[], Awaitable[Iterable[Source]]]
"""The sources that have come since the last call."""

OnTrouble = Callable[[BridgeError], None]
"""Called when a host does not answer while its logs are followed."""


class Merge:
    """Lines of `sources`. With `follow` it goes on until all sources have ended; `discover` gives
    further sources then, and keeps it open. It begins with the last `tail` lines of each instance,
    and leaves out lines from before `since` and after `until`, in nanoseconds since 1970.
    """

    def __init__(
        self,
        sources: Iterable[Source],
        *,
        follow: bool,
        discover: Discover | None,
        on_trouble: OnTrouble,
        tail: int | None = None,
        since: int = 0,
        until: int | None = None,
    ) -> None:
        self._tail = tail
        self._since = since
        self._until = until
        self._sources = list(sources)
        self._follow = follow
        self._discover = discover
        self._on_trouble = on_trouble

    async def lines(self) -> AsyncIterator[Line]:
        """The lines, the oldest first. Raises BridgeError unless they are followed."""
        async for line in self._stored():
            yield line
        loop = asyncio.get_running_loop()
        pause, relist_at = _POLL, loop.time() + _RELIST
        while self._follow and (self._sources or self._discover):
            await asyncio.sleep(pause)
            pause = min(2 * pause, _SLOWEST)
            if self._discover is not None and loop.time() >= relist_at:
                relist_at = loop.time() + _RELIST
                self._sources += await self._found()
            for source in self._sources:
                source.caught_up = False
            async for line in self._available():
                pause = _POLL
                yield line

    async def _stored(self) -> AsyncIterator[Line]:
        """The lines that are there now: all, or the last ones of each instance."""
        if self._tail is None:
            async for line in self._available():
                yield line
            return
        last: dict[str, deque[tuple[int, Line]]] = {}
        count = 0
        async for line in self._available():
            count += 1
            lines = last.setdefault(line.instance_id, deque(maxlen=self._tail))
            lines.append((count, line))
        for _, line in heapq.merge(*last.values(), key=lambda item: item[0]):
            yield line

    async def _available(self) -> AsyncIterator[Line]:
        """The lines until each source has no more for now."""
        while True:
            while wanting := [source for source in self._sources if source.wants_more]:
                await self._fetch(wanting)
            if not self._follow:
                for source in self._sources:
                    source.finish()
            ready = [source for source in self._sources if source.lines]
            if not ready:
                break
            first = min(ready, key=lambda source: source.lines[0].at)
            line = first.lines.popleft()
            if self._until is not None and line.at > self._until:
                first.end()
            elif line.at >= self._since:
                yield line
        self._sources = [source for source in self._sources if not source.ended]

    async def _found(self) -> Iterable[Source]:
        assert self._discover is not None
        try:
            return await self._discover()
        except BridgeError as exc:
            self._on_trouble(exc)
            return ()

    async def _fetch(self, wanting: list[Source]) -> None:
        """Ask each host for the next parts of its sources."""
        hosts: dict[Ask, list[Source]] = {}
        for source in wanting:
            hosts.setdefault(source.ask, []).append(source)
        fetches: list[asyncio.Task[None]] = []
        async with task_scope() as tasks:
            for number, (ask, sources) in enumerate(hosts.items()):
                name = f"logs-{number}"
                fetches.append(tasks.create_task(self._fetch_from(ask, sources), name=name))
            for fetch in fetches:
                await fetch

    async def _fetch_from(self, ask: Ask, sources: list[Source]) -> None:
        asked = {(one.instance_id, one.stream): one for one in sources[:MAX_READS]}
        request = LogsRequest(reads=[source.next_read() for source in asked.values()])
        try:
            response = await ask(request)
        except BridgeError as exc:
            if not self._follow:
                raise
            self._on_trouble(exc)
            for source in sources:
                source.caught_up = True
            return
        for chunk in response.chunks:
            asked[chunk.instance_id, chunk.stream].take(chunk)
        if not response.chunks:  # this host has nothing to give
            for source in asked.values():
                source.caught_up = True
