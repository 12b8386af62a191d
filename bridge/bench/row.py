"""What is measured, and what a measurement says: rows, goals and results.

A row is declared by its name, its goal and `prepare`, which sets the stage once and gives the two
sides of the row. A side does its work once and returns the figure of that round, in the row's
unit::

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
"""Does the work of one round and returns its figure, in the unit of the row."""


class Goal(Struct, frozen=True):
    """What a row must reach: a ratio to the floor, or where there is none, a figure in its unit."""

    bound: float
    at_least: bool

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}"

    def met(self, value: float) -> bool:
        """Whether `value` reaches it."""
        return value >= self.bound if self.at_least else value <= self.bound


def at_least(bound: float) -> Goal:
    """More is better."""
    return Goal(bound, at_least=True)


def at_most(bound: float) -> Goal:
    """Less is better."""
    return Goal(bound, at_least=False)


class Sides(Struct, frozen=True, kw_only=True):
    """Our way of doing the work, and the floor's; None where the goal is an absolute figure."""

    ours: Measure
    floor: Measure | None = None


class Site(Struct, frozen=True, kw_only=True):
    """Where a row is measured: a server, names on it that nobody else uses, an empty directory.

    `effort` 1.0 is what a figure to be believed takes; a test that asks only whether a row works
    takes less.
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
        """How often to do something that `count` times are meant for."""
        return max(round(count * self.effort), least)

    def of(self, row: str) -> Site:
        """The same for one row alone, so that rows share no stream."""
        directory = self.directory / row
        directory.mkdir()
        return replace(
            self,
            nats=replace(self.nats, prefix=f"{self.nats.prefix}-{row}"),
            directory=directory,
        )


Prepare = Callable[[Site], AbstractAsyncContextManager[Sides]]


class Row(Struct, frozen=True, kw_only=True):
    """One kind of work. `name` (a-z and '-') chooses it, `what` says what is done in a round,
    `against` what the floor is, "" if there is none. A row without a goal is for the record.
    """

    name: str
    what: str
    unit: str
    goal: Goal | None
    prepare: Prepare
    against: str = ""


class Spread(Struct, frozen=True, kw_only=True):
    """The median of some rounds, and the lowest and highest of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one value at least."""
        return cls(median=statistics.median(values), low=min(values), high=max(values))


class Result(Struct, frozen=True, kw_only=True):
    """What became of a row: each round's figures, and what they come to.

    `value` is what the goal is about: the median of the rounds' ratios, or of our own figures.
    `error` says why there are no rounds.
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
        """Ours by the floor's, for each round; none where there is no floor."""
        return [a / b for a, b in zip(self.ours, self.floor, strict=False)]

    @property
    def value(self) -> Spread | None:
        """What is held against the goal; None if nothing was measured."""
        values = self.ratios or self.ours
        return Spread.of(values) if values else None

    @property
    def met(self) -> bool:
        """Whether the goal is reached, or was measured if there is none."""
        value = self.value
        return value is not None and (self.goal is None or self.goal.met(value.median))
