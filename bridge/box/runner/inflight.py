"""How many requests are in flight, by port: the established connections without the probes."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Set as AbstractSet

from bridge.box.runner.probes import Prober
from bridge.box.runtimes.sockets import connections, count_by_port
from bridge.descriptors import is_exhausted
from bridge.errors import InstanceError

Inside = Callable[[AbstractSet[int]], Counter[int]]


class InflightCounter:
    """Counts from the kernel's tables; all calls within `freshness` seconds share one count.

    `inside` counts, in a thread, the connections that the tables of this host do not show: see
    Runtime.requests_inside.
    """

    def __init__(
        self, prober: Prober, freshness: float = 0.1, *, inside: Inside | None = None
    ) -> None:
        self._prober = prober
        self._inside = inside
        self._freshness = freshness
        self._counts: Counter[int] = Counter()
        self._taken = float("-inf")
        self._turn = asyncio.Lock()

    async def counts(self) -> Counter[int]:
        """The requests in flight by port, at most `freshness` seconds old."""
        async with self._turn:
            now = time.monotonic()
            if now - self._taken >= self._freshness:
                # In a thread: the kernel needs 0.1 s for thousands of connections.
                try:
                    self._counts = await asyncio.to_thread(self._count)
                except InstanceError as exc:
                    if not is_exhausted(exc):
                        raise
                    return self._counts  # the last count; the next call counts again
                self._prober.forget_closed()
                self._taken = now
            return self._counts

    def _count(self) -> Counter[int]:
        counts = count_by_port(connections(), without=self._prober.ports)
        if self._inside:
            counts.update(self._inside(self._prober.ports))
        return counts
