"""The row of a new route: from Ready at the Box until the gateway has the route."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Final

from bridge.bench.host import fleet
from bridge.bench.row import Row, Sides, Site, at_most
from bridge.gateway.routes.index import Put
from bridge.gateway.routes.table import Changes, RouteTable

_INSTANCES: Final = 100  # in a round, so that its worst is its p99
_MS: Final = 1e3


@contextlib.asynccontextmanager
async def _appearing(site: Site) -> AsyncIterator[Sides]:
    most = site.times(_INSTANCES)
    async with fleet(site, most=most) as gateway, RouteTable.open(gateway.connection) as table:

        async def ours() -> float:
            changes, arrived = table.changes(), dict[str, float]()
            await anext(changes)  # the table as it stands
            for target in range(1, most + 1):
                await gateway.scale("web", target)
                while len(arrived) < target:
                    await _next_put(changes, arrived)
            seen = await gateway.observe("web")
            took = sorted(
                arrived[info.id] - info.ready_at.timestamp()
                for info in seen.instances
                if info.ready_at
            )
            await gateway.scale("web", 0, wait=True)
            return took[min(int(len(took) * 0.99), len(took) - 1)] * _MS

        yield Sides(ours=ours)


async def _next_put(changes: Changes, arrived: dict[str, float]) -> None:
    async with asyncio.timeout(30.0):
        change = await anext(changes)
        if isinstance(change, Put):
            arrived.setdefault(change.route.instance_id, time.time())


ROWS: Final = (
    Row(
        name="ready-to-route",
        what="from an instance's Ready at the Box to the gateway's RouteTable, p99",
        unit="ms",
        goal=at_most(10.0),
        prepare=_appearing,
    ),
)
