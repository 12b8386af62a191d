"""Rows, their goals and their results.

A row has a name, a goal and `prepare`, which sets up the work once and yields the two sides of the
row. A side does its work once and returns the figure of that round, in the row's unit::

    @asynccontextmanager
    async def prepare(site: Site) -> AsyncIterator[Sides]:
        async with site.connect() as connection:
            yield Sides(ours=lambda: replay(connection), floor=lambda: plain_replay(site.url))

    ROW = Row(
        name="replay", what="read what is stored", against="nats-py's callback",
        unit="events/s", goal=at_least(0.9), prepare=prepare,
    )
"""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from bridge.bus.core.connection import Connection
from bridge.settings import NatsConfig

Measure = Callable[[], Awaitable[float]]
"""The work of one round; returns its figure, in the unit of the row."""


class Goal(Struct, frozen=True):
    """The ratio to the floor that a row must reach; without a floor, the figure in its unit."""

    bound: float
    at_least: bool

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}"

    def met(self, value: float) -> bool:
        """Whether `value` reaches it."""
        return value >= self.bound if self.at_least else value <= self.bound


def at_least(bound: float) -> Goal:
    """A goal where more is better."""
    return Goal(bound, at_least=True)


def at_most(bound: float) -> Goal:
    """A goal where less is better."""
    return Goal(bound, at_least=False)


class Sides(Struct, frozen=True, kw_only=True):
    """The work as this package does it, and as the floor does; None if the goal is absolute."""

    ours: Measure
    floor: Measure | None = None


class Site(Struct, frozen=True, kw_only=True):
    """Where a row is measured: a server, a prefix of its own on it, and an empty directory.

    `effort` 1.0 is enough work for a figure that can be trusted; a test needs less.
    """

    nats: NatsConfig
    directory: Path
    effort: float = 1.0

    @property
    def url(self) -> str:
        """The server's URL."""
        return self.nats.url

    def connect(self, name: str = "bench") -> AbstractAsyncContextManager[Connection]:
        """A connection under this site's names."""
        return Connection.open(self.nats, name=f"box-bridge {name}")

    def times(self, count: int, *, least: int = 2) -> int:
        """`count` scaled by the effort, but at least `least`."""
        return max(round(count * self.effort), least)

    def of(self, row: str) -> Site:
        """The same site for one row, with names of its own: rows share no stream."""
        directory = self.directory / row
        directory.mkdir()
        return replace(
            self,
            nats=replace(self.nats, prefix=f"{self.nats.prefix}-{row}"),
            directory=directory,
        )


Prepare = Callable[[Site], AbstractAsyncContextManager[Sides]]


class Row(Struct, frozen=True, kw_only=True):
    """One kind of work. `name` (a-z and '-') identifies it, `what` describes a round, and `against`
    describes the floor ("" without one). A row without a goal is only recorded.
    """

    name: str
    what: str
    unit: str
    goal: Goal | None
    prepare: Prepare
    against: str = ""


class Spread(Struct, frozen=True, kw_only=True):
    """The median of some figures, the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        return cls(median=statistics.median(values), low=min(values), high=max(values))


class Result(Struct, frozen=True, kw_only=True):
    """The figures of a row's rounds. `value` is compared with the goal. `error` is the reason why
    there are no figures.
    """

    name: str
    what: str
    against: str
    unit: str
    goal: Goal | None
    ours: list[float] = []
    floor: list[float] = []
    error: str = ""

    @property
    def ratios(self) -> list[float]:
        """Our figure divided by the floor's, for each round; empty without a floor."""
        return [a / b for a, b in zip(self.ours, self.floor, strict=False)]

    @property
    def value(self) -> Spread | None:
        """The median of the ratios, or of our figures without a floor; None without figures."""
        values = self.ratios or self.ours
        return Spread.of(values) if values else None

    @property
    def met(self) -> bool:
        """Whether the goal is reached; without a goal, whether there are figures."""
        value = self.value
        return value is not None and (self.goal is None or self.goal.met(value.median))
