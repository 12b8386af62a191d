"""A simulated Box: the real deciders, claims, ledger, restorer and views in a thin shell.

What is re-enacted, and what it mirrors: `BoxLife.start` is `daemon._Lifecycle.start` with
`HostLease.take`, `renewing` is `HostLease.run`, `recover` is `Resync.run`, `may_plan` is
`Readiness.may_plan`, `restore` is `Restorer.restore`, `work` is `Supervisor.run`, and everything
that follows is the supervisor's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from bridge.box.api.replies import refusal_of
from bridge.box.fleet.listener import FleetListener
from bridge.box.scheduler import rollout
from bridge.box.scheduler.admission import Admission, AdmissionRequest, refuse
from bridge.box.scheduler.planner import (
    Action,
    Claim,
    Discard,
    Drain,
    GiveUp,
    LocalInstance,
    Make,
    Release,
    plan,
    remake,
)
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.lifecycle import ENDED, Life
from bridge.box.state.records import HostIdentity, HostRecord, ServiceRecord, SlotRecord
from bridge.bus.jetstream.kv_view import Record
from bridge.errors import BusError, Conflict, NoReply
from bridge.protocol import InstanceState
from bridge.reply_codes import Refusal, ReplyCode
from bridge.subjects import slot_key
from tests.sim.instances import TIMING, SlotInstance
from tests.sim.shell import SimulatedClaims, SimulatedDecisions
from tests.sim.view import HEARTBEAT, Link, View

if TYPE_CHECKING:
    from tests.sim.hosts import Host

_NOT_STARTED: Final = ENDED | {InstanceState.CREATING}  # and ended
_RETRY: Final = 0.25  # seconds: `Supervisor`
_TICK: Final = 5.0  # seconds: `Supervisor`


class BoxLife(FleetListener):
    """One life of the Box on `host`. See the module."""

    def __init__(self, host: Host, link: Link, view: View) -> None:
        self.host = host
        self.kernel = host.world.kernel
        self.link = link
        self.view = view
        self.fleet = view.fleet
        self.me = HostIdentity(host=host.name, host_id=host.host_id)
        self.ledger = SimulatedDecisions(
            self.fleet,
            self.kernel,
            host.world.checks.intends,
            lambda: None if self.may_plan() else "not current",
        )
        self.claims = SimulatedClaims(
            self.me,
            self.fleet,
            self.ledger,
            host.record().services,
            self.kernel,
            host.world.new_id,
        )
        self.held: dict[str, dict[int, SlotInstance]] = {}
        self.ready = False
        self._checked = False
        self._renewed = float("-inf")
        self._changed = self._recovering = False
        self._dirty: set[str] = set()
        self._working = False
        if view.owner is not None:
            view.fleet.subscribe(self)

    def spawn(self, work: Any) -> None:
        """Run `work` for as long as this life lasts."""
        self.kernel.spawn(self.link, work)

    # ── starting, and coming back ────────────────────────────────────────────────────────

    async def start(self) -> None:
        """Views, what the last life left, the lease, then work."""
        await self._back()
        for held in [item.again() for item in self.host.journal.values()]:
            if held.id not in self.host.running and held.life.info.state not in _NOT_STARTED:
                held.step(self, InstanceState.FAILED)
            self._hold(held)
            self.spawn(held.live(self))
        await self._take_lease()
        self.ready = True
        self._checked = not self._changed  # the connection may have broken meanwhile
        if not self._checked:
            self._recheck()
        self.spawn(self._renewing())
        self.spawn(self._ticking())
        self.plan_needed(None)

    async def _back(self) -> None:
        while True:
            try:
                await self.until_connected()
                await self._wait_live()
                await self._restore()
            except BusError:
                await self.kernel.sleep(0.5)
            else:
                return

    async def _wait_live(self) -> None:
        while not self.fleet.live:
            await self.kernel.sleep(0.1)

    async def _take_lease(self) -> None:
        hosts = self.fleet.hosts
        while True:
            there = hosts.get(self.me.host)
            if there is not None and there.value.host_id != self.me.host_id:
                with contextlib.suppress(BusError):
                    if await hosts.read(self.me.host) is None:
                        hosts.drop(self.me.host)
                await self.kernel.sleep(1.0)
                continue
            try:
                await self._renew()
            except BusError:
                await self.kernel.sleep(0.5)
            else:
                return

    async def until_connected(self) -> None:
        """Return while there is a connection."""
        while not self.link.connected:
            await self.kernel.sleep(0.2)

    def on_connection(self) -> None:
        """The connection broke, or stands again."""
        self._recheck()

    def slot_owner_changed(
        self, service: str, slot: int, before: SlotRecord | None, claim: SlotRecord | None
    ) -> None:
        held = self.held.get(service, {}).get(slot)
        if held is None or held.ended:
            return
        if claim is not None:
            if not self.me.holds(claim):
                self.leave(held, f"slot taken by {claim.host}")
        elif self.fleet.state.may_be_held(service, slot):
            held.reassert(self)

    def on_loss(self) -> None:
        """The store shows less than was known."""
        self._recheck()

    def _recheck(self) -> None:
        self._checked, self._changed = False, True
        if self.ready and not self._recovering:
            self._recovering = True
            self.spawn(self._recover())

    async def _recover(self) -> None:
        while self._changed:
            await self.until_connected()
            self._changed = False
            try:
                await self._wait_live()
                await self._restore()
                await self._renew()
            except BusError:
                await self.kernel.sleep(0.5)
                self._changed = True
            else:
                self._checked = not self._changed
        self._recovering = False
        self.host.world.checks.excuse(self.host)
        self.plan_needed(None)

    async def _restore(self) -> None:
        view = self.view
        by_another = view.restoring  # that shares the view
        while view.restoring:
            await self.kernel.sleep(0.1)
        if by_another:
            return
        view.restoring = view.owner is None
        try:
            if await view.restorer.write_back():
                await self.kernel.sleep(HEARTBEAT)
        finally:
            view.restoring = False

    async def _renewing(self) -> None:
        pause = HEARTBEAT
        while True:
            await self.kernel.sleep(pause)
            pause = HEARTBEAT / 4
            with contextlib.suppress(BusError):
                await self._renew()
                pause = HEARTBEAT

    async def _renew(self) -> None:
        started = self.kernel.now
        await self.fleet.hosts.put(self.me.host, self._record(), timeout=HEARTBEAT)
        self._renewed = started

    def _record(self) -> HostRecord:
        return self.host.record()

    def may_plan(self) -> bool:
        """Whether what this Box sees is current."""
        held = self.kernel.now - self._renewed < TIMING.lease
        return self.link.connected and self._checked and self.fleet.live and held

    # ── requests ─────────────────────────────────────────────────────────────────────────

    async def answer(self, request: AdmissionRequest, reply: Callable[[Admission], None]) -> None:
        """Answer a request as `ScaleApi` does."""
        try:
            if not (self.ready and self.may_plan()):
                raise Refusal(ReplyCode.NOT_READY, "not current")
            admission = await self.ledger.decide(request)
        except NoReply:
            return
        except (BusError, Refusal) as exc:
            admission = refuse(request.request, self.fleet.state, refusal_of(exc))
        reply(admission)

    # ── the supervisor ───────────────────────────────────────────────────────────────────

    def plan_needed(self, services: Iterable[str] | None) -> None:
        """Have services planned again; None means all of them."""
        self._dirty.update(self._all_services() if services is None else services)
        if self.ready and not self._working:
            self._working = True
            self.spawn(self._work())

    def touch_at(self, moment: float, service: str) -> None:
        """Touch `service` at `moment`: a backoff has passed."""
        again = max(0.0, moment - self.kernel.now)
        self.kernel.after(
            again, lambda: self.kernel.act(self.link, lambda: self.plan_needed([service]))
        )

    async def _ticking(self) -> None:
        while self.view.owner is not None:
            await self.kernel.sleep(_TICK)
            self.plan_needed(None)

    def _all_services(self) -> set[str]:
        return {*self.host.services, *self.held, *self.fleet.state.services}

    async def _work(self) -> None:
        await self.kernel.sleep(self.host.world.times.think())
        while self._dirty:
            if not self.may_plan():
                self._remake()
                await self.kernel.sleep(_RETRY)
                continue
            dirty, self._dirty = sorted(self._dirty, reverse=True), set()
            while dirty and self.may_plan():
                await self._attend(dirty.pop())
            self._dirty.update(dirty)
        self._working = False

    async def _attend(self, service: str) -> None:
        try:
            await self._carry_out(service)
            await self._roll(service)
        except Conflict:
            self.plan_needed([service])
            await self.kernel.sleep(0.01)
        except BusError:
            self.plan_needed([service])
            await self.kernel.sleep(_RETRY)
        self._forget_dead(service)

    async def _carry_out(self, service: str) -> None:
        for held in self.held.get(service, {}).values():
            if not held.ended:
                held.reassert(self)
        for action in plan(
            service,
            self.fleet.state,
            self.me,
            self._locals(service),
            now=self.kernel.now,
            at=self.kernel.wall(),
        ):
            if not self.may_plan():
                self.plan_needed([service])
                return
            self._note(service, action)
            await self._act(service, action)

    def _note(self, service: str, action: Action) -> None:
        self.kernel.note(lambda: f"{self.me.host} {service} {action}")

    async def _act(self, service: str, action: Action) -> None:
        match action:
            case Drain(slot=slot, reason=reason):
                self.leave(self.held[service][slot], reason)
            case Release(slot=slot):
                await self.claims.release(service, slot)
            case Discard(slot=slot):
                await self.claims.discard(service, slot)
            case GiveUp(slot=slot):
                await self.claims.give_up(service, slot)
            case Claim(slot=slot):
                if claim := await self.claims.take(service, slot):
                    self._make(service, slot, claim)
            case Make(slot=slot):
                await self._make_again(service, slot)

    async def _make_again(self, service: str, slot: int) -> None:
        record = self.fleet.state.services.get(service)
        there = self.fleet.slots.get(slot_key(service, slot))
        if record is None or there is None or not self.me.holds(there.value):
            return
        if self.claims.can_make(service, record):
            self._make(service, slot, None)
        else:
            await self.claims.release(service, slot)

    def _make(self, service: str, slot: int, claim: Record[SlotRecord] | None) -> None:
        record = self.fleet.state.services.get(service)
        if record is None or service not in self.host.services:
            return
        before = self.held.get(service, {}).get(slot)
        held = SlotInstance(
            slot,
            claim.value.config if claim else record.config_id,
            self.host.demand(record),
            Life(info=claim.value.info) if claim else self.claims.new_life(service),
            failures=before.failures if before else 0,
        )
        if claim:
            held.claimed(claim)
        self.host.journal[held.id] = held
        if before is not None and before.settled:
            self.host.journal.pop(before.id, None)
        self._hold(held)
        self.spawn(held.live(self))

    def _hold(self, held: SlotInstance) -> None:
        slots = self.held.setdefault(held.service, {})
        if (before := slots.get(held.slot)) is not None:
            before.owned = False
        slots[held.slot] = held
        self.host.world.holders[held.service, held.slot].add(self.me.host)

    def _remake(self) -> None:
        for service in list(self.held):
            local, now = self._locals(service), self.kernel.now
            for slot in remake(service, self.fleet.state, self.me, local, now=now):
                self._make(service, slot, None)

    def _locals(self, service: str) -> dict[int, LocalInstance]:
        return {
            slot: LocalInstance(
                ended=held.ended,
                settled=held.settled,
                leaving=held.leaving,
                failures=held.failures if held.ended else 0,
                retry_at=held.retry_at,
            )
            for slot, held in self.held.get(service, {}).items()
        }

    def leave(self, held: SlotInstance, reason: str) -> None:
        """Have an instance drain and end."""
        if not held.leaving:
            held.leaving = True
            self.host.world.checks.leaves(self.host, held, reason)
            held.wake()

    def forget(self, held: SlotInstance) -> None:
        """The last event of the instance is published. A failure counts for the next start."""
        if not (held.counted and self.held.get(held.service, {}).get(held.slot) is held):
            self.host.journal.pop(held.id, None)
        self.fleet.index.end_own_instance(held.service, held.slot, held.id)

    def _forget_dead(self, service: str) -> None:
        slots = self.fleet.state.slots_of(service)
        held = self.held.get(service, {})
        for slot in [slot for slot, item in held.items() if item.settled]:
            claim = slots.get(slot)
            if claim is None or not self.me.holds(claim):
                self.host.journal.pop(held.pop(slot).id, None)
                self.host.world.holders[service, slot].discard(self.me.host)
        if not held:
            self.held.pop(service, None)

    def instances(self) -> Iterator[SlotInstance]:
        """What has not ended."""
        for slots in self.held.values():
            yield from (held for held in slots.values() if not held.ended)

    async def _roll(self, service: str) -> None:
        state = self.fleet.state
        if not rollout.is_open(service, state):
            return
        if min(state.offering(service), default="") != self.me.host:
            return

        def step(fleet: FleetState) -> ServiceRecord | None:
            return rollout.next_step(service, fleet, at=self.kernel.wall(), host=self.me.host)

        if step(state) is not None:
            await self.ledger.amend(service, step)

    async def count_failure(self, service: str, slot: int) -> None:
        """A replacement failed before it was Ready."""

        def failed(fleet: FleetState) -> ServiceRecord | None:
            return rollout.count_failure(
                service, fleet, slot, "it fell", at=self.kernel.wall(), host=self.me.host
            )

        await self.ledger.amend(service, failed)
