"""The real decisions and the real claims of a Box, on simulated time.

`SimulatedDecisions` replaces the two methods of `Decisions` that need an event loop, and nothing
else.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Container
from typing import Any, cast

from bridge.box.fleet.claims import Claims
from bridge.box.fleet.decisions import Decisions
from bridge.box.fleet.view import FleetView
from bridge.box.state import lifecycle
from bridge.box.state.lifecycle import Life
from bridge.box.state.records import HostIdentity, ServiceRecord
from bridge.errors import Conflict
from tests.sim.instances import TIMING
from tests.sim.kernel import Kernel


class SimulatedDecisions(Decisions):
    """The real decisions, on simulated time."""

    def __init__(
        self,
        fleet: FleetView,
        kernel: Kernel,
        intends: Callable[..., None],
        blocker: Callable[[], str | None],
    ) -> None:
        super().__init__(fleet, TIMING.decide_timeout, kernel.wall, blocker)
        self._kernel = kernel
        self._intends = intends
        self._busy = False

    @contextlib.asynccontextmanager
    async def _my_turn(self) -> AsyncIterator[float]:
        while self._busy:
            await self._kernel.sleep(0.02)
        self._busy = True
        try:
            yield self._kernel.now + self._patience
        finally:
            self._busy = False

    async def _write(self, service: str, record: ServiceRecord, deadline: float) -> bool:
        services = cast(Any, self._fleet.services)
        seq = services.seq
        self._intends(service, record, self._fleet.state)
        try:
            await services.compare_and_set(service, record, seq)
        except Conflict as exc:
            await services.wait_for(seq + 1 if exc.last is None else exc.last, deadline)
            return False
        return True


class _Registry:
    def withdraw(self, _: object) -> None:
        """Gateways are not simulated."""

    def forget(self, _: str) -> None:
        """Nor is what is remembered for them."""


class SimulatedClaims(Claims):
    """The real claims, with ids that the seed gives."""

    def __init__(
        self,
        me: HostIdentity,
        fleet: FleetView,
        ledger: Decisions,
        services: Container[str],
        kernel: Kernel,
        new_id: Callable[[str], str],
    ) -> None:
        super().__init__(me, fleet, ledger, cast(Any, _Registry()), services, kernel.wall)
        self._new_id = new_id

    def new_life(self, service: str) -> Life:
        return lifecycle.begin(self._new_id(service), service, self._clock())
