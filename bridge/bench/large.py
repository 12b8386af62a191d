"""The row of a large fleet: the cost of a request for 10 instances among 100,000 others."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

from bridge.bench import fleets
from bridge.bench.host import fleet
from bridge.bench.row import Measure, Row, Sides, Site, at_most
from bridge.bus.jetstream import topology
from bridge.gateway.client import ScaleClient
from bridge.protocol import ScaleRequest, ScaleResponse, decode, encode

LARGE: Final = 100_000  # instances
SMALL: Final = 100
_REQUESTS: Final = 500  # requests in a round
_INSTANCES: Final = 10
_US: Final = 1e6


@contextlib.asynccontextmanager
async def _two_fleets(site: Site) -> AsyncIterator[Sides]:
    times = site.times(_REQUESTS)
    async with (
        among(site.of("large"), site.times(LARGE)) as large,
        among(site.of("small"), SMALL) as small,
    ):
        yield Sides(ours=latency(large, times), floor=latency(small, times))


@contextlib.asynccontextmanager
async def among(
    site: Site, count: int, started: Callable[[int], object] = lambda pid: None
) -> AsyncIterator[ScaleClient]:
    """Run a Box with ten instances of ``web`` in a fleet of `count` others; yields a client. The
    other hosts offer ``web`` too, and have no room. `started` is called with the pid of the Box.
    """
    try:
        async with site.connect() as connection:
            await topology.ensure(connection)
            await fleets.record(connection, count)
            async with (
                fleets.hosts_live(connection, count, also="web"),
                fleet(site, most=_INSTANCES, started=started) as gateway,
            ):
                await gateway.scale("web", _INSTANCES, wait=True)
                yield gateway
    finally:
        async with site.connect() as connection:
            await topology.remove(connection)


def latency(gateway: ScaleClient, times: int) -> Measure:
    """A side that takes the median of `times` requests that change nothing, one in flight."""
    connection = gateway.connection
    body = encode(ScaleRequest(service="web", replicas=_INSTANCES))

    async def measure() -> float:
        took = []
        for _ in range(times):
            start = time.perf_counter()
            answer = await connection.request(connection.subjects.scale, body)
            took.append(time.perf_counter() - start)
            assert decode(ScaleResponse, answer.data).accepted
        return statistics.median(took) * _US

    return measure


ROWS: Final = (
    Row(
        name="scale-large",
        what="box.scale of a service of 10 among 100,000 instances on 200 hosts, p50",
        against="the same among 100 instances",
        unit="µs",
        goal=at_most(1.3),
        prepare=_two_fleets,
    ),
)
