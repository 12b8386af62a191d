"""What the gateway daemon knows of each service: its target, its revision and its routes.

Answers come from memory. A service is read from the Boxes when it is asked for first, after each
change of its routes or its events, and at least every second while somebody asks for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Mapping
from typing import Final

from msgspec import Struct

from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.errors import BusError
from bridge.gateway.client import ScaleClient
from bridge.gateway.errors import ScaleError
from bridge.gateway.routes.index import Delete, Put, Resync, Route
from bridge.gateway.routes.table import RouteTable
from bridge.log_limit import LimitedLog, cause_of
from bridge.tasks import task_scope

_log = logging.getLogger(__name__)

_REFRESH: Final = 1.0  # seconds between two looks at a service that is asked for
_FORGOTTEN: Final = 60.0  # seconds without a request, then a service is not refreshed any more
_QUERY: Final = 2.0  # seconds for one look
_SETTLED: Final = 3.0  # seconds after which a lower revision is no late answer: the store lost some
_SERVICES: Final = 10_000  # that are kept; requests may name ever new ones


class Observation(Struct, frozen=True, kw_only=True):
    """A service at one moment. `ranks` are by instance id; `target` is None for an unknown one."""

    target: int | None
    revision: int
    ranks: Mapping[str, int]


class _Watched(Struct, kw_only=True):
    observation: Observation
    kept_at: float
    asked_at: float
    changed: bool = False


class Observations:
    """The services that are asked for; see the module."""

    def __init__(self, connection: Connection, table: RouteTable) -> None:
        self.table = table
        self.connection = connection
        self.client = ScaleClient(connection)
        self._watched: dict[str, _Watched] = {}
        self._wake = asyncio.Event()
        self._log = LimitedLog(_log)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, connection: Connection, table: RouteTable) -> AsyncIterator[Observations]:
        """The observations, kept up to date until the block ends."""
        observations = cls(connection, table)
        listener = await connection.listen(connection.subjects.all_events, observations._take_event)
        try:
            async with task_scope() as tasks:
                tasks.create_task(observations._follow_routes(), name="observed-routes")
                tasks.create_task(observations._refresh_always(), name="observations")
                yield observations
        finally:
            await listener.close()

    async def get(self, service: str) -> Observation:
        """The newest observation. The first request for a service reads it from a Box.

        Raises ScaleError if no Box answers, and BusError.
        """
        watched = self._watched.get(service)
        if watched is None:
            return await self.read(service)
        watched.asked_at = time.monotonic()
        return watched.observation

    async def read(self, service: str) -> Observation:
        """The observation as a Box answers it now. Raises as `get`."""
        seen = await self.client.observe(service, timeout=_QUERY)
        observation = Observation(target=seen.target, revision=seen.revision, ranks=seen.ranks)
        if seen.target is not None:
            self._keep(service, observation)
        return observation

    def take(self, service: str, *, target: int, revision: int) -> None:
        """Take over what an accepted request says of its service."""
        watched = self._watched.get(service)
        if watched is None or watched.observation.revision <= revision:
            ranks = watched.observation.ranks if watched else {}
            kept = {key: rank for key, rank in ranks.items() if rank < target}
            self._keep(service, Observation(target=target, revision=revision, ranks=kept))
        self._mark(service)

    def routes(self, service: str, observation: Observation) -> list[tuple[int, Route]]:
        """The routes with a rank below the target, by rank."""
        target = observation.target or 0
        ranked = [
            (rank, route)
            for route in self.table.endpoints(service)
            if (rank := observation.ranks.get(route.instance_id)) is not None and rank < target
        ]
        return sorted(ranked, key=lambda pair: pair[0])

    def _keep(self, service: str, observation: Observation) -> None:
        watched = self._watched.pop(service, None)
        if watched is None:
            if len(self._watched) >= _SERVICES:
                del self._watched[next(iter(self._watched))]
            now = time.monotonic()
            watched = _Watched(observation=observation, kept_at=now, asked_at=now)
        elif (
            observation.revision >= watched.observation.revision
            or time.monotonic() - watched.kept_at > _SETTLED
        ):
            watched.observation, watched.kept_at = observation, time.monotonic()
        self._watched[service] = watched

    # ── following ────────────────────────────────────────────────────────────────────────

    def _take_event(self, message: Message) -> None:
        self._mark(message.subject.rpartition(".")[2])

    async def _follow_routes(self) -> None:
        async for change in self.table.changes():
            match change:
                case Put():
                    self._mark(change.route.service)
                case Delete():
                    self._mark(change.service)
                case Resync():
                    for service in self._watched:
                        self._mark(service)

    def _mark(self, service: str) -> None:
        if watched := self._watched.get(service):
            watched.changed = True
            self._wake.set()

    async def _refresh_always(self) -> None:
        due = time.monotonic() + _REFRESH
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(due - time.monotonic(), 0)):
                    await self._wake.wait()
            self._wake.clear()
            now = time.monotonic()
            everything = now >= due
            if everything:
                due = now + _REFRESH
            for service, watched in list(self._watched.items()):
                idle = now - watched.asked_at > _FORGOTTEN
                if idle:
                    del self._watched[service]
                elif everything or watched.changed:
                    watched.changed = False
                    await self._refresh(service)

    async def _refresh(self, service: str) -> None:
        try:
            observation = await self.read(service)
        except (BusError, ScaleError) as exc:
            self._log.report(cause_of(exc), "%s cannot be observed: %s", service, exc)
        else:
            if observation.target is None:
                self._watched.pop(service, None)
