"""What size costs: fleets of 10² to 10⁵ instances, and one to a thousand consumers.

``python -m tests.bench.growth`` writes ``growth.json`` and ``growth.svg``, and exits with 1 when
something costs more than it should: what does not change must cost nothing, what changes no more
than its share. It takes a minute or two.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import math
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct, field

from bridge import EventHub, RouteTable
from bridge.bench import fleets, large, registrations
from bridge.bench.machine import Machine, describe_machine
from bridge.bench.row import Site
from bridge.box.runtimes.process.usage import ProcessSample, read_sample
from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.gateway.events.hub import HubEvents
from bridge.gateway.routes.index import Route
from bridge.gateway.routes.state import RouteState
from bridge.protocol import InstanceState, now
from bridge.settings import NatsConfig
from tests.bench import forecasts
from tests.bench.curves import render_svg
from tests.stored_events import note, outgoing, store_all

FLEETS = (100, 1000, 10_000, 100_000)
CONSUMERS = (1, 10, 100, 1000)
EVENTS = 500
REPEATS = 200
IDLE = 10.0  # seconds
MEMORY = Path("/dev/shm")  # noqa: S108 - a file system that is none of the disk's

US = 1e6


class Curve(Struct, kw_only=True):
    """A cost at several sizes. `power` is the highest power of the size with which it may grow: 0
    is not at all, 1 in proportion. What noise does to the fit is allowed for.
    """

    name: str
    unit: str
    of: str
    power: int
    points: list[tuple[int, float]] = field(default_factory=list)

    @property
    def exponent(self) -> float:
        """The power of the size with which it does grow: a straight line through the logarithms.
        What was too little to be measured says nothing.
        """
        logs = [(math.log(size), math.log(cost)) for size, cost in self.points if cost > 0]
        if len(logs) < 2:
            return 0.0
        middle = statistics.mean(x for x, _ in logs), statistics.mean(y for _, y in logs)
        spread = sum((x - middle[0]) ** 2 for x, _ in logs)
        return sum((x - middle[0]) * (y - middle[1]) for x, y in logs) / spread

    @property
    def sound(self) -> bool:
        """Whether it grows with no more than `power`."""
        return self.exponent <= self.power + 0.15


class Growth(Struct, kw_only=True):
    """All curves, and where they were taken."""

    at: str
    machine: Machine
    curves: list[Curve]


class Curves:
    """The curves as they are taken."""

    def __init__(self, of: str) -> None:
        self._of = of
        self.found: dict[str, Curve] = {}

    def add(self, size: int, cost: float, name: str, unit: str, power: int) -> None:
        """One more point of the curve `name`."""
        made = Curve(name=name, unit=unit, of=self._of, power=power)
        self.found.setdefault(name, made).points.append((size, cost))
        print(f"{size:>7} {self._of}: {name}: {cost:,.1f} {unit}", file=sys.stderr)


async def of_a_box(site: Site, size: int, curves: Curves) -> None:
    """What a Box does for ten instances of its own, among `size` others."""
    pids: list[int] = []
    start = time.perf_counter()
    async with large.among(site.of(f"box-{size}"), size, started=pids.append) as gateway:
        curves.add(size, time.perf_counter() - start, "recorded, a Box started", "s", 1)
        ask = large.latency(gateway, REPEATS)
        await ask()
        curves.add(size, statistics.median([await ask() for _ in range(3)]), "box.scale", "µs", 0)
        before = _look(pids[0])
        await asyncio.sleep(IDLE)
        after = _look(pids[0])
        percent = 100 * (after.cpu - before.cpu) / IDLE
        curves.add(size, percent, "a Box that has nothing to do", "% of a core", 1)
        curves.add(size, after.memory / 1e6, "a Box", "MB", 1)


async def of_a_gateway(site: Site, size: int, curves: Curves) -> None:
    """What a route table costs: to join, to keep, and to hear of one instance."""
    own = site.of(f"gateway-{size}")
    async with own.connect() as connection:
        await topology.ensure(connection)
        await fleets.register(connection, size)
        start = time.process_time()
        async with RouteTable.open(connection, timing=registrations.TIMING) as table:
            assert len(table) == size
        curves.add(size, (time.process_time() - start) * 1e3, "a gateway joins", "ms", 1)
        grown = await registrations.route_memory(own.nats, size)
        curves.add(size, grown * size / 1e6, "its routes", "MB", 1)
        await topology.remove(connection)
    book = RouteState(600.0)
    told = [
        Route(
            service=item.service,
            instance_id=item.instance_id,
            endpoint=item.endpoint,
            state=InstanceState.READY,
            host=fleets.host_of(number),
            metadata=item.metadata,
            started_at=item.started_at,
        )
        for number, item in enumerate(fleets.registrations(size))
    ]
    for number, route in enumerate(told):
        book.register(route, number + 1, 0.0)
    book.take_changes()
    some = told[:: max(size // 100, 1)]
    start = time.process_time()
    for repeat in range(REPEATS):
        for route in some:
            book.register(route, size + repeat + 1, 1.0)
    cost = (time.process_time() - start) / REPEATS / len(some)
    curves.add(size, cost * US, "a lease is renewed", "µs", 0)
    start = time.process_time()
    for repeat in range(REPEATS * 100):
        book.tick(1.0 + repeat / 1000, live=True)
    cost = (time.process_time() - start) / REPEATS / 100
    curves.add(size, cost * US, "time passes", "µs", 0)


async def of_forecasts(size: int, curves: Curves) -> None:
    """What one service of `size` costs the loop of a Box that is asked about it."""
    forecasts.measure(size, curves.add)


async def of_a_hub(connection: Connection, size: int, curves: Curves) -> None:
    """What consumers of one hub cost: an event for all of them, and to have them."""

    async def consume(events: HubEvents) -> None:
        for _ in range(EVENTS):
            await anext(events)

    async with EventHub.open(connection) as hub:
        gc.collect()
        tracemalloc.start()
        kept = [hub.subscribe() for _ in range(size)]
        used, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        curves.add(size, used / 1e3, "consumers", "kB", 1)
        messages = [outgoing(note(str(number))) for number in range(EVENTS)]
        start = time.process_time()
        async with asyncio.TaskGroup() as tasks:
            for events in kept:
                tasks.create_task(consume(events))
            await store_all(connection, messages)
        cost = (time.process_time() - start) / EVENTS
        curves.add(size, cost * US, "an event, to all", "µs", 1)


def _look(pid: int) -> ProcessSample:
    load = read_sample(pid)
    assert load is not None
    return load


async def take(sizes: Sequence[int], measures: Sequence[Callable[[int], Awaitable[None]]]) -> None:
    """Each measure at each size, the small ones first."""
    for measure in measures:
        for size in sizes:
            gc.collect()
            await measure(size)


async def grow(directory: Path, fleet_sizes: Sequence[int], hub_sizes: Sequence[int]) -> Growth:
    """All curves, on a server whose disk is none: it is not what is measured."""
    instances, consumers = Curves("instances"), Curves("consumers")
    async with (
        EmbeddedServer(directory / "nats") as server,
        Connection.open(NatsConfig(url=server.url), name="growth") as connection,
    ):
        site = Site(nats=NatsConfig(url=server.url, prefix="growth"), directory=directory)
        await take(
            fleet_sizes,
            [
                lambda size: of_a_gateway(site, size, instances),
                lambda size: of_a_box(site, size, instances),
                lambda size: of_forecasts(size, instances),
            ],
        )
        await topology.ensure(connection)
        await take(hub_sizes, [lambda size: of_a_hub(connection, size, consumers)])
    curves = [*instances.found.values(), *consumers.found.values()]
    return Growth(at=now().isoformat(timespec="seconds"), machine=describe_machine(), curves=curves)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--largest", type=int, default=FLEETS[-1], help="instances")
    options.add_argument("--out", type=Path, default=Path("bench-results"))
    chosen = options.parse_args()
    place = MEMORY if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(dir=place, prefix="box-bridge-growth-") as name:
        sizes = [size for size in FLEETS if size <= chosen.largest]
        found = asyncio.run(grow(Path(name), sizes, CONSUMERS))
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "growth.json").write_bytes(msgspec.json.format(msgspec.json.encode(found)))
    (chosen.out / "growth.svg").write_text(render_svg(found.curves), encoding="utf-8")
    for curve in found.curves:
        said = "sound" if curve.sound else f"TOO MUCH: at most {curve.power}"
        print(f"{curve.name:32} grows with the power {curve.exponent:5.2f} of {curve.of}: {said}")
    return 0 if all(curve.sound for curve in found.curves) else 1


if __name__ == "__main__":
    sys.exit(main())
