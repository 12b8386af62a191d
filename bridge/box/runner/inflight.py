"""How many requests are in flight, by port: the established connections, probes left out."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Set as AbstractSet

from bridge.box.runner.probes import Prober
from bridge.box.runtimes.sockets import connections, established

Inside = Callable[[AbstractSet[int]], Counter[int]]


class InflightCounter:
    """One look at the kernel's tables serves everybody who asks within `freshness` seconds.

    `inside` counts, from a thread, what the tables of this host do not show: see
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

    async def inflight(self) -> Counter[int]:
        """The requests in flight by port, at most `freshness` seconds ago."""
        async with self._turn:
            now = time.monotonic()
            if now - self._taken >= self._freshness:
                # In a thread: thousands of connections take the kernel a tenth of a second.
                self._counts = await asyncio.to_thread(self._look)
                self._prober.forget_closed()
                self._taken = now
            return self._counts

    def _look(self) -> Counter[int]:
        counts = established(connections(), without=self._prober.ports)
        if self._inside:
            counts.update(self._inside(self._prober.ports))
        return counts
