"""Taking the steps of rollouts, and counting the instances that fail on the way."""

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
    """Carries out what `rollout` decides; `host` is the one that decides here."""

    def __init__(
        self, host: str, fleet: FleetView, decisions: Decisions, clock: Callable[[], datetime]
    ) -> None:
        self._host = host
        self._fleet = fleet
        self._decisions = decisions
        self._clock = clock

    async def step(self, service: str) -> None:
        """Take the next step of a rollout, if this host is the one to take it."""
        state = self._fleet.state
        if not rollout.is_open(service, state):
            return  # as nearly always; only an open rollout is worth a pass over all hosts
        offering = state.offering(service, on_request=state.services[service].on_request)
        if first_at_work(offering) != self._host:
            return

        def step(fleet: FleetState) -> ServiceRecord | None:
            return rollout.next_step(service, fleet, at=self._clock(), host=self._host)

        if step(state) is not None:
            await self._decisions.amend(service, step)

    async def count_failure(self, service: str, slot: int, why: str) -> None:
        """Count an instance in `slot` that failed before it was Ready."""

        def count(fleet: FleetState) -> ServiceRecord | None:
            return rollout.count_failure(
                service, fleet, slot, why, at=self._clock(), host=self._host
            )

        await self._decisions.amend(service, count)
