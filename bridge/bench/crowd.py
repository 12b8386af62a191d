"""The row of a full host: the processor time of a Box with 500 instances while nothing happens.

The instances are real processes, probed, sampled and registered as often as any.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Final

from bridge.bench.host import fleet
from bridge.bench.row import Row, Sides, Site, at_most
from bridge.settings import Probe

COUNT: Final = 500
_ROUND: Final = 10.0  # seconds: each instance is probed twice, and renewed once
_SETTLING: Final = 10.0  # seconds after the last Ready
_BOOTING: Final = 240.0  # seconds for all to be Ready


@contextlib.asynccontextmanager
async def _idle(site: Site) -> AsyncIterator[Sides]:
    count = site.times(COUNT)
    pids: list[int] = []
    async with fleet(site, most=count, probe=Probe(tcp=True), started=pids.append) as gateway:
        await gateway.scale("web", count, wait=True, timeout=_BOOTING)
        await asyncio.sleep(_SETTLING * min(site.effort, 1.0))

        async def ours() -> float:
            start, before = time.perf_counter(), _used(pids[0])
            await asyncio.sleep(_ROUND * min(site.effort, 1.0))
            return 100 * (_used(pids[0]) - before) / (time.perf_counter() - start)

        yield Sides(ours=ours)


def _used(pid: int) -> float:
    """The processor seconds that a process has used so far, to the nanosecond."""
    from bridge.box.runtimes.process.usage import (
        read_sample,  # a part of the extra `box`, as it needs psutil
    )

    load = read_sample(pid)
    assert load is not None, "the Box that is measured has ended"
    return load.cpu


ROWS: Final = (
    Row(
        name="idle",
        what="an idle Box with 500 instances, each a process of its own",
        unit="% of a core",
        goal=at_most(5.0),
        prepare=_idle,
    ),
)
