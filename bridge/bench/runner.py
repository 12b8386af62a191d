"""Measures rows: both sides in turn, round by round, and who begins changes with each round."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Callable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from bridge.bench.machine import Machine, Noise, Watch, look
from bridge.bench.row import Measure, Result, Row, Sides, Site
from bridge.bus.jetstream import topology
from bridge.errors import BridgeError
from bridge.protocol import format_time, now

PATIENCE = 300.0  # seconds for one side of one round


class Report(Struct, frozen=True, kw_only=True):
    """A whole run: what was measured, where, with what, and what else went on there."""

    at: str
    rounds: int
    machine: Machine
    server: dict[str, str]
    noise: Noise
    warnings: list[str]
    rows: list[Result]

    @property
    def met(self) -> bool:
        """Whether every row reaches its goal."""
        return all(row.met for row in self.rows)


Progress = Callable[[str], None]
"""Told in words what is being measured."""


async def measure(
    rows: Sequence[Row],
    site: Site,
    *,
    rounds: int,
    tell: Progress = lambda words: None,
    server: dict[str, str] | None = None,
) -> Report:
    """Measure `rows` one after the other. A row that fails says why and spoils no other."""
    watch, results = Watch(), []
    started = format_time(now())
    for row in rows:
        try:
            results.append(await _measure_row(row, site.of(row.name), rounds, watch, tell))
        except (BridgeError, TimeoutError, OSError) as exc:
            why = str(exc) or type(exc).__name__
            results.append(replace(_nothing_of(row), error=why))
    noise = watch.noise()
    return Report(
        at=started,
        rounds=rounds,
        machine=look(),
        server=server or {},
        noise=noise,
        warnings=noise.warnings,
        rows=results,
    )


async def _measure_row(row: Row, site: Site, rounds: int, watch: Watch, tell: Progress) -> Result:
    tell(f"{row.name}: preparing")
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(_clear, site)
        sides = await stack.enter_async_context(row.prepare(site))
        for side in _order(sides, 0):
            await _once(side)  # caches, connections and lazy imports are nobody's merit
        figures: dict[Measure, list[float]] = {side: [] for side in _order(sides, 0)}
        for number in range(rounds):
            tell(f"{row.name}: round {number + 1} of {rounds}")
            watch.calibrate()
            for side in _order(sides, number):
                figures[side].append(await _once(side))
        floor = figures[sides.floor] if sides.floor else []
        return replace(_nothing_of(row), ours=figures[sides.ours], floor=floor)


def _order(sides: Sides, number: int) -> list[Measure]:
    both = [sides.ours, sides.floor] if sides.floor else [sides.ours]
    return both[::-1] if number % 2 else both


async def _once(side: Measure) -> float:
    gc.collect()  # the other side's garbage is not this one's
    async with asyncio.timeout(PATIENCE):
        return await side()


async def _clear(site: Site) -> None:
    async with site.connect() as connection:
        await topology.remove(connection)


def _nothing_of(row: Row) -> Result:
    return Result(
        name=row.name,
        what=row.what,
        against=row.against,
        unit=row.unit,
        goal=row.goal,
    )
