"""Boxes of a large fleet that share a view, and are asked for plans only where there is something
to do.

In a real Box a change of the fleet has all services planned anew; in a thousand simulated ones
that would be nearly always for nothing. Who may have something to do is reckoned once for all of
them, and now and then one who may not is asked all the same: its plan must be empty.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bridge.box.model import ServiceRecord
from bridge.box.placement import place
from bridge.box.planner import plan
from bridge.subjects import slot_key
from tests.sim.view import Kept, View

if TYPE_CHECKING:
    from tests.sim.box import BoxLife
    from tests.sim.world import World

_ASKED_ANYWAY: Final = 0.002  # of the services that are looked at
_TICK: Final = 5.0  # seconds: `Supervisor`


class Group:
    """See the module."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.kept = Kept()
        self.members: dict[str, BoxLife] = {}
        self._dirty: set[str] = set()
        self._due = False
        self._all = False
        self.view = View(
            world.kernel,
            world.bus,
            world.buckets,
            world.lease,
            self.kept,
            None,
            self.touch,
            self._on_loss,
        )
        self.view.resync()
        self._tick()

    def touch(self, service: str | None) -> None:
        """A plan for `service`, or all, may have changed."""
        if service is None:
            self._all = True
        else:
            self._dirty.add(service)
        if not self._due:
            self._due = True
            self._world.kernel.after(self._world.times.think(), self._look)

    def _on_loss(self) -> None:
        for life in list(self.members.values()):
            life.on_loss()

    def _tick(self) -> None:
        self.touch(None)
        self._world.kernel.after(_TICK, self._tick)

    def _look(self) -> None:
        services = self.view.fleet.state.services
        dirty = set(services) if self._all else self._dirty & services.keys()
        self._due, self._all, self._dirty = False, False, set()
        for service in sorted(dirty):
            concerned = self._concerned(service)
            for name in sorted(concerned & self.members.keys()):
                self.members[name].touch(service)
            if self._world.kernel.random.random() < _ASKED_ANYWAY:
                self._ask_anyway(service, concerned)

    def _concerned(self, service: str) -> set[str]:
        """The hosts that may have something to do about `service`."""
        state = self.view.fleet.state
        record, slots = state.services[service], state.slots_of(service)
        wanted = set(record.slots)
        found = {min(state.offering(service), default="")}
        if out := slots.keys() - wanted:
            found |= {slots[slot].host for slot in out} | {min(state.hosts, default="")}
        return found | self._placed(service, record, wanted) | self._behind(service, wanted)

    def _placed(self, service: str, record: ServiceRecord, wanted: set[int]) -> set[str]:
        """The hosts that may have to take a slot."""
        state = self.view.fleet.state
        slots = state.slots_of(service)
        free = wanted - slots.keys()
        if state.dead or self._world.wiped:
            free |= {slot for slot in wanted & slots.keys() if state.is_orphan(slots[slot])}
        placed = place(service, state, record, free, at=self._world.kernel.wall())
        return {*state.lost.get(service, {}).values(), *placed.values()}

    def _behind(self, service: str, wanted: set[int]) -> set[str]:
        """The hosts of which what they have is not as the records say."""
        slots, found = self.view.fleet.state.slots_of(service), set[str]()
        for name, life in self.members.items():
            for slot, held in life.held.get(service, {}).items():
                claim = slots.get(slot)
                if slot not in wanted or held.ended or claim is None or not life.me.holds(claim):
                    found.add(name)
        for slot in wanted & slots.keys():
            name = slots[slot].host
            if (there := self.members.get(name)) is not None:
                mine = there.held.get(service, {}).get(slot)
                revision = self.view.fleet.slots.revision(slot_key(service, slot))
                if mine is None or mine.revision != revision:
                    found.add(name)
        return found

    def _ask_anyway(self, service: str, concerned: set[str]) -> None:
        others = sorted(self.members.keys() - concerned)
        if not others:
            return
        life = self.members[self._world.kernel.random.choice(others)]
        if not life.may_plan():
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
