"""Measures rows: both sides in turn, round by round, beginning with the other side each time."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Callable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from bridge.bench.machine import Machine, Noise, NoiseMeter, describe_machine
from bridge.bench.row import Measure, Result, Row, Sides, Site
from bridge.bus.jetstream import topology
from bridge.errors import BridgeError
from bridge.protocol import format_time, now

PATIENCE = 300.0  # seconds for one side of one round


class Report(Struct, frozen=True, kw_only=True):
    """A run: its results, its machine and server, and the noise of other work on the machine."""

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
"""Called with a line that says what is being measured."""


async def measure(
    rows: Sequence[Row],
    site: Site,
    *,
    rounds: int,
    progress: Progress = lambda line: None,
    server: dict[str, str] | None = None,
) -> Report:
    """Measure `rows` one after the other. An error of a row is in its result; the others go on."""
    meter, results = NoiseMeter(), []
    started = format_time(now())
    for row in rows:
        try:
            results.append(await _measure_row(row, site.of(row.name), rounds, meter, progress))
        except (BridgeError, TimeoutError, OSError) as exc:
            error = str(exc) or type(exc).__name__
            results.append(replace(_empty_result(row), error=error))
    noise = meter.noise()
    return Report(
        at=started,
        rounds=rounds,
        machine=describe_machine(),
        server=server or {},
        noise=noise,
        warnings=noise.warnings,
        rows=results,
    )


async def _measure_row(
    row: Row, site: Site, rounds: int, meter: NoiseMeter, progress: Progress
) -> Result:
    progress(f"{row.name}: preparing")
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(_clear, site)
        sides = await stack.enter_async_context(row.prepare(site))
        for side in _order(sides, 0):
            await _run_once(side)  # not counted: it fills caches, connects and imports
        figures: dict[Measure, list[float]] = {side: [] for side in _order(sides, 0)}
        for number in range(rounds):
            progress(f"{row.name}: round {number + 1} of {rounds}")
            meter.calibrate()
            for side in _order(sides, number):
                figures[side].append(await _run_once(side))
        floor = figures[sides.floor] if sides.floor else []
        return replace(_empty_result(row), ours=figures[sides.ours], floor=floor)


def _order(sides: Sides, number: int) -> list[Measure]:
    both = [sides.ours, sides.floor] if sides.floor else [sides.ours]
    return both[::-1] if number % 2 else both


async def _run_once(side: Measure) -> float:
    gc.collect()  # so that no side pays for the garbage of the other
    async with asyncio.timeout(PATIENCE):
        return await side()


async def _clear(site: Site) -> None:
    async with site.connect() as connection:
        await topology.remove(connection)


def _empty_result(row: Row) -> Result:
    return Result(
        name=row.name,
        what=row.what,
        against=row.against,
        unit=row.unit,
        goal=row.goal,
    )
