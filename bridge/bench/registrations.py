"""The rows of a gateway that joins late, and of the memory that a route takes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
import time
from collections.abc import AsyncIterator
from typing import Final

import msgspec

from bridge.bench import baseline, fleets
from bridge.bench.row import Row, Sides, Site, at_most
from bridge.bus.core.connection import Connection
from bridge.bus.jetstream import topology
from bridge.errors import ServerNotStarted
from bridge.gateway.routes.table import RouteTable
from bridge.protocol import encode
from bridge.settings import NatsConfig, Timing

COUNT: Final = 100_000
TIMING: Final = Timing(registration_ttl=fleets.TTL)


@contextlib.asynccontextmanager
async def _joining(site: Site) -> AsyncIterator[Sides]:
    count = site.times(COUNT)
    async with site.connect() as connection, baseline.connected(site.nats) as client:
        await topology.ensure(connection)
        await fleets.register(connection, count)
        bucket = f"{site.nats.prefix}_peer"
        await baseline.create_bucket(client, bucket)
        try:
            same = (
                (f"{item.service}.{item.instance_id}", encode(item))
                for item in fleets.registrations(count)
            )
            await fleets.fill(connection, bucket, same)

            async def ours() -> float:
                start = time.perf_counter()
                async with RouteTable.open(connection, timing=TIMING) as table:
                    took = time.perf_counter() - start
                    assert len(table) == count
                return took

            async def floor() -> float:
                start = time.perf_counter()
                values = await baseline.watch_keys(client, bucket, count)
                took = time.perf_counter() - start
                assert len(values) == count
                return took

            yield Sides(ours=ours, floor=floor)
        finally:
            await baseline.remove_bucket(connection, bucket)


@contextlib.asynccontextmanager
async def _held(site: Site) -> AsyncIterator[Sides]:
    count = site.times(COUNT)
    async with site.connect() as connection:
        await topology.ensure(connection)
        await fleets.register(connection, count)

        async def ours() -> float:
            return await route_memory(site.nats, count)

        yield Sides(ours=ours)


async def route_memory(settings: NatsConfig, count: int) -> float:
    """The bytes for each route by which a process grows when it opens a table of `count`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bridge.bench.registrations"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    answer, _ = await process.communicate(msgspec.json.encode((settings, count)))
    if process.returncode:
        raise ServerNotStarted("the process whose memory is measured ended by itself")
    return float(answer)


async def _grow(settings: NatsConfig, count: int) -> float:
    async with Connection.open(settings, name="box-bridge bench") as connection:
        gc.collect()
        before = _resident()
        async with RouteTable.open(connection, timing=TIMING) as table:
            gc.collect()
            assert len(table) == count
            return (_resident() - before) / count


def _resident() -> int:
    """The resident memory of this process, in bytes."""
    from bridge.box.runtimes.process.usage import (
        read_sample,  # a part of the extra `box`, as it needs psutil
    )

    load = read_sample(os.getpid())
    assert load is not None
    return load.memory


ROWS: Final = (
    Row(
        name="late-join",
        what="a RouteTable of 100,000 registrations: opened, checked, complete",
        against="nats-py's kv.watch of as many keys",
        unit="s",
        goal=at_most(0.6),
        prepare=_joining,
    ),
    Row(
        name="route-memory",
        what="by how much a process grows for each of 100,000 routes (RSS)",
        unit="bytes",
        goal=at_most(1500),
        prepare=_held,
    ),
)


if __name__ == "__main__":
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=tuple[NatsConfig, int])
    sys.stdout.write(str(asyncio.run(_grow(*task))))
