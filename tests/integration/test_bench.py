"""Measuring: both sides in turn, a failure that spoils no other row, and nothing left behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bridge.bench.row import Row, Sides, Site, at_least
from bridge.bench.rows import ROWS
from bridge.bench.runner import measure
from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.api import jetstream
from bridge.errors import BenchFailed
from bridge.settings import NatsConfig
from tests.support import connect


class Staged:
    """A row whose sides say when they are measured."""

    def __init__(self, name: str, *, fails_at: int = 0) -> None:
        self.calls: list[str] = []
        self._fails_at = fails_at
        self.row = Row(
            name=name,
            what="nothing",
            against="nothing",
            unit="s",
            goal=at_least(2.0),
            prepare=self._prepare,
        )

    @asynccontextmanager
    async def _prepare(self, site: Site) -> AsyncIterator[Sides]:
        async with site.connect() as connection:
            await topology.ensure(connection)
            self.calls.append(f"prepared in {site.directory.name}")
            yield Sides(ours=lambda: self._side("ours", 6.0), floor=lambda: self._side("floor", 2))
            self.calls.append("cleared")

    async def _side(self, name: str, figure: float) -> float:
        self.calls.append(name)
        if self._fails_at == len(self.calls):
            raise BenchFailed("it broke")
        return figure


def site(server: EmbeddedServer, path: Path, *, effort: float = 1.0) -> Site:
    nats = NatsConfig(url=server.url, prefix="bench-x")
    return Site(nats=nats, directory=path, effort=effort)


@pytest.mark.slow
async def test_the_sides_take_turns_and_each_begins_in_turn(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    staged = Staged("one")
    report = await measure([staged.row], site(server, tmp_path), rounds=3)
    assert staged.calls == [
        "prepared in one",
        *("ours", "floor"),  # to warm up: not counted
        *("ours", "floor", "floor", "ours", "ours", "floor"),
        "cleared",
    ]
    [result] = report.rows
    assert (result.ours, result.floor, result.ratios) == ([6.0] * 3, [2.0] * 3, [3.0] * 3)
    assert report.met
    assert report.machine.loop == "asyncio"


@pytest.mark.slow
async def test_the_error_of_a_row_is_in_its_result_and_the_others_go_on(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    rows = [Staged("one", fails_at=4).row, Staged("two").row]
    report = await measure(rows, site(server, tmp_path), rounds=2)
    one, two = report.rows
    assert (one.error, one.ours, one.met) == ("it broke", [], False)
    assert two.met
    assert not report.met


@pytest.mark.slow
async def test_a_run_leaves_nothing_on_the_server(server: EmbeddedServer, tmp_path: Path) -> None:
    async with connect(server.url) as connection:
        await topology.ensure(connection)
        before = await _streams(connection)
        rows = [Staged("one").row, Staged("two", fails_at=2).row]
        await measure(rows, site(server, tmp_path), rounds=1)
        assert await _streams(connection) == before


async def _streams(connection: Connection) -> list[str]:
    infos = await jetstream(connection).streams_info()
    return sorted(info.config.name or "" for info in infos)


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
async def test_every_row_works(server: EmbeddedServer, tmp_path: Path, row: Row) -> None:
    report = await measure([row], site(server, tmp_path, effort=0.02), rounds=1)
    [result] = report.rows
    assert result.error == ""
    assert result.ours[0] > 0 or row.name == "idle"  # which may use less than a tick of the clock
    assert row.goal == result.goal
    async with connect(server.url) as connection:
        assert await _streams(connection) == []
