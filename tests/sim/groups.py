"""Boxes of a large fleet that share a view, and are asked for plans only where there is something
to do.

In a real Box a change of the fleet has all services planned anew; in a thousand simulated ones
that would be nearly always for nothing. Who may have something to do is reckoned once for all of
them, and now and then one who may not is asked all the same: its plan must be empty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Final

from bridge.box.fleet.listener import FleetListener
from bridge.box.runner.publication import is_as_written
from bridge.box.scheduler import rollout
from bridge.box.scheduler.placement import place
from bridge.box.scheduler.planner import plan
from bridge.box.state.records import SlotRecord
from bridge.subjects import slot_key
from tests.sim.view import Kept, View

if TYPE_CHECKING:
    from tests.sim.box import BoxLife
    from tests.sim.hosts import Host
    from tests.sim.world import World

_ASKED_ANYWAY: Final = 0.002  # of the services that are looked at
_LATE: Final = 60.0  # seconds after a trouble in which a host may have what is no longer its own
_TICK: Final = 5.0  # seconds: `Supervisor`


class Group(FleetListener):
    """See the module."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.kept = Kept()
        self.members: dict[str, BoxLife] = {}
        self._dirty: set[str] = set()
        self._due = False
        self._all = False
        self._back: Counter[str] = Counter()
        self.view = View(
            world.kernel,
            world.bus,
            world.buckets,
            world.lease,
            self.kept,
            None,
            self._on_loss,
        )
        self.view.fleet.subscribe(self)
        self.view.resync()
        self._tick()

    def plan_needed(self, services: Iterable[str] | None) -> None:
        """Plans for these services, or all, may have changed."""
        if services is None:
            self._all = True
        else:
            self._dirty.update(services)
        if not self._due:
            self._due = True
            self._world.kernel.after(self._world.times.think(), self._look)

    def _on_loss(self) -> None:
        for life in list(self.members.values()):
            life.on_loss()

    def slot_owner_changed(
        self, service: str, slot: int, before: SlotRecord | None, claim: SlotRecord | None
    ) -> None:
        """Report it to the holder before, and to hosts that are just back from a trouble.

        No other host can have an instance there.
        """
        concerned = self._world.holders[service, slot] & self._back.keys()
        if before is not None:
            concerned.add(before.host)
        for name in sorted(concerned & self.members.keys()):
            life = self.members[name]
            self._world.kernel.act(
                life.link, partial(life.slot_owner_changed, service, slot, before, claim)
            )

    def resynced(self, host: Host) -> None:
        """The fault of the host has ended. A view of its own would now receive every change that
        it has missed.
        """
        self._back[host.name] += 1
        self._world.kernel.after(_LATE, partial(self._no_longer_back, host.name))
        if (life := self.members.get(host.name)) is not None:
            self._world.kernel.act(life.link, partial(self._tell_moved, life))

    def _no_longer_back(self, host: str) -> None:
        self._back[host] -= 1
        if not self._back[host]:
            del self._back[host]

    def _tell_moved(self, life: BoxLife) -> None:
        state = self.view.fleet.state
        for service, slots in life.held.items():
            claims = state.slots_of(service)
            for slot in list(slots):
                claim = claims.get(slot)
                if claim is None or not life.me.holds(claim):
                    life.slot_owner_changed(service, slot, None, claim)

    def _tick(self) -> None:
        """Look at everything, as every Box does, whatever has changed."""
        for name, life in self.members.items():
            for service, held in life.held.items():
                moved = self.view.moved.setdefault(service, set())
                moved.update((name, slot) for slot in held)
        self.plan_needed(None)
        self._world.kernel.after(_TICK, self._tick)

    def _look(self) -> None:
        services = self.view.fleet.state.services
        dirty = services.keys() | self.view.moved.keys() if self._all else self._dirty
        self._due, self._all, self._dirty = False, False, set()
        for service in sorted(dirty & services.keys()):
            concerned = self._concerned(service)
            for name in sorted(concerned & self.members.keys()):
                self.members[name].plan_needed([service])
            if self._world.kernel.random.random() < _ASKED_ANYWAY:
                self._ask_anyway(service, concerned)

    def _concerned(self, service: str) -> set[str]:
        """The hosts that may have something to do about `service`."""
        state = self.view.fleet.state
        tally = state.service_slots(service)
        outside = tally.outside
        found = {
            host for (host, _), held in tally.by_holder.items() if not outside.isdisjoint(held)
        }
        if found:
            found.add(min(state.hosts, default=""))
        if rollout.is_open(service, state):
            found.add(min(state.offering(service), default=""))
        return found | self._placed(service) | self._behind(service)

    def _placed(self, service: str) -> set[str]:
        """The hosts that may have to take a slot."""
        state = self.view.fleet.state
        vacant = state.vacant(service)
        record, at = state.services[service], self._world.kernel.wall()
        placed = place(service, state, record, vacant, at=at)
        return {*state.lost.get(service, {}).values(), *placed.values()}

    def _behind(self, service: str) -> set[str]:
        """The hosts of which what they have is not as the records say, where either changed. They
        are looked at again until it is.
        """
        moved = self.view.moved.pop(service, ())
        if found := {(host, slot) for host, slot in moved if self._is_behind(host, service, slot)}:
            self.view.moved[service] = found
        return {host for host, _ in found}

    def _is_behind(self, host: str, service: str, slot: int) -> bool:
        if (life := self.members.get(host)) is None:
            return False  # it looks at everything when it comes
        state = self.view.fleet.state
        held, claim = life.held.get(service, {}).get(slot), state.slots_of(service).get(slot)
        mine = claim is not None and life.me.holds(claim)
        if held is None:
            return mine
        if not mine or held.ended or slot not in state.service_slots(service).wanted:
            return True
        key = slot_key(service, slot)
        return not is_as_written(self.view.fleet.slots, key, held.revision, held.told)

    def _ask_anyway(self, service: str, concerned: set[str]) -> None:
        others = sorted(self.members.keys() - concerned)
        if not others:
            return
        life = self.members[self._world.kernel.random.choice(others)]
        held = life.held.get(service, {})
        if not life.may_plan() or any(self._is_behind(life.me.host, service, n) for n in held):
            return
        actions = plan(
            service,
            self.view.fleet.state,
            life.me,
            life._locals(service),
            now=self._world.kernel.now,
            at=self._world.kernel.wall(),
        )
        if actions:
            raise AssertionError(f"{life.me.host} was not asked, and has {actions} to do")
