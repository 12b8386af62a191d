"""Taking the steps of rollouts, one host at a time, and counting what fails on the way."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from bridge.box.fleet.decisions import Decisions
from bridge.box.fleet.view import FleetView
from bridge.box.scheduler import rollout
from bridge.box.scheduler.placement import first_at_work
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.records import ServiceRecord


class RolloutDriver:
    """Carries out what `rollout` decides, in the name of `host`."""

    def __init__(
        self, host: str, fleet: FleetView, ledger: Decisions, clock: Callable[[], datetime]
    ) -> None:
        self._host = host
        self._fleet = fleet
        self._ledger = ledger
        self._clock = clock

    async def step(self, service: str) -> None:
        """Take the next step of a rollout, if this host is the one to take it."""
        state = self._fleet.state
        if not rollout.is_open(service, state):
            return  # nearly always, and the first by name takes a look at each host
        offering = state.offering(service, on_request=state.services[service].on_request)
        if first_at_work(offering) != self._host:
            return

        def step(fleet: FleetState) -> ServiceRecord | None:
            return rollout.next_step(service, fleet, at=self._clock(), host=self._host)

        if step(state) is not None:
            await self._ledger.amend(service, step)

    async def failed(self, service: str, slot: int, why: str) -> None:
        """An instance in `slot` failed before it was Ready."""

        def failed(fleet: FleetState) -> ServiceRecord | None:
            return rollout.failed(service, fleet, slot, why, at=self._clock(), host=self._host)

        await self._ledger.amend(service, failed)
