"""Taking the steps of rollouts, and counting the instances that fail on the way."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final

from bridge.box.fleet.decisions import Decisions
from bridge.box.fleet.view import FleetView
from bridge.box.scheduler import rollout
from bridge.box.scheduler.placement import first_at_work
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.records import ServiceRecord

_REMEMBERED: Final = 10_000  # failed instances of runners


class RolloutDriver:
    """Carries out what `rollout` decides; `host` is the one that decides here."""

    def __init__(
        self, host: str, fleet: FleetView, decisions: Decisions, clock: Callable[[], datetime]
    ) -> None:
        self._host = host
        self._fleet = fleet
        self._decisions = decisions
        self._clock = clock
        self._counted: set[str] = set()

    async def step(self, service: str) -> None:
        """Take the next step of a rollout, if this host is the one to take it."""
        state = self._fleet.state
        if not rollout.is_open(service, state):
            return  # as nearly always; only an open rollout is worth a pass over all hosts
        if _decider(service, state) != self._host:
            return
        await self._count_failures_of_runners(service, state)

        def step(fleet: FleetState) -> ServiceRecord | None:
            return rollout.next_step(service, fleet, at=self._clock(), host=self._host)

        if step(state) is not None:
            await self._decisions.amend(service, step)

    async def _count_failures_of_runners(self, service: str, state: FleetState) -> None:
        """Count the failed instances of hosts that do not decide, each once.

        After the decision has moved to another host, it may count an instance again.
        """
        if len(self._counted) > _REMEMBERED:
            self._counted.clear()
        for slot, claim in state.slots_of(service).items():
            host, info = state.hosts.get(claim.host), claim.info
            if host is None or host.decides or not claim.failure or info.ready_at is not None:
                continue
            if info.id not in self._counted:
                self._counted.add(info.id)
                await self.count_failure(service, slot, claim.failure)

    async def count_failure(self, service: str, slot: int, why: str) -> None:
        """Count an instance in `slot` that failed before it was Ready."""

        def count(fleet: FleetState) -> ServiceRecord | None:
            return rollout.count_failure(
                service, fleet, slot, why, at=self._clock(), host=self._host
            )

        await self._decisions.amend(service, count)


def _decider(service: str, state: FleetState) -> str:
    """The host that takes the steps of the service's rollout: one that offers the service, or else
    any other one; "" if no host that offers it is ready.
    """
    offering = state.offering(service, on_request=state.services[service].on_request)
    ready = any(host.ready for host in offering.values())
    return first_at_work(offering) or (first_at_work(state.hosts) if ready else "")
