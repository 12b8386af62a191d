"""The rows of requests: `box.scale`, beside an echo that does none of its work."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import statistics
import time
from collections.abc import AsyncIterator
from typing import Final

from bridge.bench import baseline
from bridge.bench.host import fleet
from bridge.bench.row import Row, Sides, Site, at_most
from bridge.bus.core.connection import Connection
from bridge.gateway.client import ScaleClient
from bridge.protocol import ScaleRequest, ScaleResponse, decode, encode

_INSTANCES: Final = 10
_UNCHANGING: Final = 1000  # requests in a round that change nothing
_CHANGING: Final = 40  # requests in a round that do
_US: Final = 1e6


def _request(replicas: int) -> bytes:
    return encode(ScaleRequest(service="web", replicas=replicas))


async def _scale(connection: Connection, body: bytes) -> ScaleResponse:
    answer = await connection.request(connection.subjects.scale, body)
    return decode(ScaleResponse, answer.data)


@contextlib.asynccontextmanager
async def _nothing_changes(site: Site) -> AsyncIterator[Sides]:
    times, body = site.times(_UNCHANGING), _request(_INSTANCES)
    async with fleet(site, most=_INSTANCES) as gateway:
        reply = await _ten_instances(gateway)
        echo = baseline.Echo(nats=site.nats, subject=f"{site.nats.prefix}.echo", reply=reply)
        async with baseline.echoing(echo), baseline.connected(site.nats) as client:

            async def ours() -> float:
                took = []
                for _ in range(times):
                    start = time.perf_counter()
                    await _scale(gateway.connection, body)
                    took.append(time.perf_counter() - start)
                return statistics.median(took) * _US

            async def floor() -> float:
                return (
                    statistics.median(await baseline.ask(client, echo.subject, body, times)) * _US
                )

            yield Sides(ours=ours, floor=floor)


async def _ten_instances(gateway: ScaleClient) -> str:
    """Scale to ten instances; returns the reply to a request that changes nothing."""
    await gateway.scale("web", _INSTANCES, wait=True)
    answer = await gateway.connection.request(
        gateway.connection.subjects.scale, _request(_INSTANCES)
    )
    return answer.data.decode()


@contextlib.asynccontextmanager
async def _target_changes(site: Site) -> AsyncIterator[Sides]:
    times = site.times(_CHANGING)
    async with fleet(site, most=_INSTANCES + 1) as gateway:
        reply = await _ten_instances(gateway)
        bucket = f"{site.nats.prefix}_echo"
        echo = baseline.Echo(
            nats=site.nats,
            subject=f"{site.nats.prefix}.echo",
            reply=reply,
            bucket=bucket,
            value=reply[:600],  # about as long as a service's record
        )
        targets = itertools.cycle([_INSTANCES + 1, _INSTANCES])
        pauses: list[float] = []

        async def ours() -> float:
            took = []
            for target in itertools.islice(targets, times):
                start = time.perf_counter()
                await _scale(gateway.connection, _request(target))
                answered = time.perf_counter()
                await _settled(gateway, target)
                took.append(answered - start)
                pauses.append(time.perf_counter() - answered)
            return statistics.median(took) * _US

        try:
            async with baseline.echoing(echo), baseline.connected(site.nats) as client:

                async def floor() -> float:
                    took = []
                    for _ in range(times):
                        took += await baseline.ask(client, echo.subject, _request(_INSTANCES), 1)
                        # As cold as the other side is after its own.
                        await asyncio.sleep(statistics.median(pauses))
                    return statistics.median(took) * _US

                yield Sides(ours=ours, floor=floor)
        finally:
            await baseline.remove_bucket(gateway.connection, bucket)


async def _settled(gateway: ScaleClient, target: int) -> None:
    """Return when the decision is carried out, so that the next request need not wait for it."""
    while True:
        seen = await gateway.observe("web")
        if seen.total == target and all(info.ready_at for info in seen.instances):
            return
        await asyncio.sleep(0.02)


ROWS: Final = (
    Row(
        name="scale-same",
        what="box.scale that changes nothing, 10 instances, one request in flight, p50",
        against="nats-py echo of the same bytes",
        unit="µs",
        goal=at_most(1.15),
        prepare=_nothing_changes,
    ),
    Row(
        name="scale-change",
        what="box.scale that changes the target, p50",
        against="the same echo after one KV compare-and-set",
        unit="µs",
        goal=at_most(1.25),
        prepare=_target_changes,
    ),
)
