"""Making it so: plans for each service that changed, carries the plan out, owns the instances.

Every instance is a task of the supervisor's; one that dies of a bug takes the Box with it.
Claims are written before anything is made, and given up after it has ended and all is told. While
the Box cannot plan, as when it is cut off, it still replaces what ends in slots that it holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Final

from bridge.box.fleet.claims import Claims
from bridge.box.fleet.decisions import Decisions
from bridge.box.fleet.rollout_driver import RolloutDriver
from bridge.box.fleet.view import FleetView
from bridge.box.journal.entry import JournalEntry
from bridge.box.runner.instance import Instance
from bridge.box.runner.instance_specs import InstanceSpecs
from bridge.box.runner.local_slots import LocalSlot, LocalSlots
from bridge.box.runner.publication import InstancePublication, PublicationContext
from bridge.box.runtimes.base import Handle
from bridge.box.scheduler.planner import (
    Action,
    Claim,
    Discard,
    Drain,
    GiveUp,
    Make,
    Release,
    plan,
    remake,
)
from bridge.box.state import lifecycle
from bridge.box.state.records import HostIdentity, SlotRecord
from bridge.bus.jetstream.kv_view import Record
from bridge.errors import BusError, Conflict, ProtocolError
from bridge.protocol import InstanceState
from bridge.subjects import slot_key
from bridge.tasks import task_scope

_log = logging.getLogger(__name__)

_TICK: Final = 5.0  # seconds after which every service is planned anew, changed or not
_LOOK: Final = 0.05  # seconds between looks while closing
_RELEASE_PATIENCE: Final = 5.0  # seconds; a claim that stays is given up with the host's lease
_AT_ONCE: Final = 16  # actions of one plan that wait for the bus
_RETRY: Final = 0.25  # seconds before a plan that the bus kept from being carried out


_BEFORE_START: Final = frozenset({InstanceState.CREATING, InstanceState.BOOTING})


class Supervisor:
    """See the module. `run` works until cancelled; `current` says whether plans may be made."""

    def __init__(
        self,
        me: HostIdentity,
        fleet: FleetView,
        ledger: Decisions,
        teller: PublicationContext,
        workshop: InstanceSpecs,
        current: Callable[[], bool],
    ) -> None:
        self._me = me
        self._fleet = fleet
        self._ledger = ledger
        self._teller = teller
        self._workshop = workshop
        self._claims = Claims(
            me, fleet, ledger, teller.registry, workshop.services, workshop.around.clock
        )
        self._rollouts = RolloutDriver(me.host, fleet, ledger, workshop.around.clock)
        self._current = current
        self._held = LocalSlots(me)
        self._taken: list[LocalSlot] = []
        self._dirty: set[str] = set()
        self._wake = asyncio.Event()
        self._looked = time.monotonic()
        self._tick_at = self._looked + _TICK
        self._closing = ""
        self._tasks: asyncio.TaskGroup | None = None

    # ── what others ask ──────────────────────────────────────────────────────────────────

    def instances(self) -> Iterator[Instance]:
        """The instances on this host that have not ended."""
        return self._held.instances()

    async def take_back(self, entries: Iterable[JournalEntry]) -> None:
        """Go on with the instances of this host's last life; call it before `run`."""
        for entry in sorted(entries, key=lambda entry: entry.life.info.created_at):
            info = entry.life.info
            handle = None
            started = entry.identity is not None or info.state not in _BEFORE_START
            if started and info.state not in lifecycle.ENDED:
                handle = await self._workshop.around.runtime.adopt(
                    self._workshop.spec(entry), entry.identity, entry.port
                )
            held = self._held.hold(self._assemble(entry, None, handle), entry)
            self._taken.append(held)
            if not self._workshop.still_makes(entry, self._fleet.state.services.get(info.service)):
                held.instance.leave("its service is no longer offered on this host")

    def touch(self, services: Iterable[str] | None) -> None:
        """Have services planned anew; None means all of them."""
        self._dirty.update(self._all_services() if services is None else services)
        self._wake.set()

    def claim_moved(self, service: str, slot: int, now: SlotRecord | None) -> None:
        """The claim of a slot is another host's `now`, or there is none. If an instance of this
        host lives there it yields, or is claimed again: what runs wins. That is in no plan's turn,
        for other plans may take long, and others wait for a lost claim no longer than a lease.
        """
        held = self._held.at(service, slot)
        if held is None or held.ended:
            return
        if now is not None:
            if not self._me.holds(now):
                held.instance.leave(f"slot taken by {now.host}")
        elif self._fleet.state.is_to_be_held(service, slot):
            held.instance.story.reassert()

    def living(self, instance_id: str) -> Instance | None:
        """The instance of this id, if it is on this host and has not ended."""
        return self._held.living(instance_id)

    async def close(self, reason: str) -> None:
        """Drain every instance and start none; returns when all have ended, and their slots are
        given up or the bus has kept them for 5 s: the next life of this Box gives them up then.
        """
        self._closing = reason
        while remaining := list(self.instances()):
            for instance in remaining:
                instance.leave(reason)
            await asyncio.sleep(_LOOK)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_RELEASE_PATIENCE):
                while self._held or self._held.vacant(self._fleet.state):
                    self.touch(None)
                    await asyncio.sleep(_LOOK)

    # ── the loop ─────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Plan and act until cancelled."""
        async with task_scope() as self._tasks:
            for held in self._taken:
                self._begin(held)
            while True:
                await self._until_due()
                if not self._current():
                    self._remake()
                    await asyncio.sleep(_RETRY)
                    self._wake.set()
                    continue
                dirty, self._dirty = sorted(self._dirty, reverse=True), set()
                while dirty and self._current():  # a loss of the store may be seen meanwhile
                    await self._attend(dirty.pop())
                if dirty:
                    self.touch(dirty)

    def _all_services(self) -> set[str]:
        return {*self._workshop.services, *self._held.services, *self._fleet.state.services}

    async def _until_due(self) -> None:
        """Wait for a change, for a backoff to pass, or for the tick. Neither of these is put off by
        changes, nor forgotten if it comes while a plan is carried out.
        """
        due = self._held.retries(since=self._looked)
        with contextlib.suppress(TimeoutError):
            until = min([self._tick_at, *due.values()])
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                await self._wake.wait()
        self._wake.clear()
        self._looked = now = time.monotonic()
        self._dirty.update(service for service, at in due.items() if at <= now)
        if now >= self._tick_at:
            self._tick_at = now + _TICK
            self._dirty |= self._all_services()

    async def _attend(self, service: str) -> None:
        """Carry out the plan for one service. What the bus prevents is tried again."""
        try:
            if self._closing:
                for slot in self._held.vacant(self._fleet.state, service):
                    await self._claims.release(service, slot)
            else:
                await self._carry_out(service)
                await self._rollouts.step(service)
        except Conflict as exc:
            _log.debug("%s: somebody was faster: %s", service, exc)
            self.touch([service])  # the view will tell who; plan again then
            await asyncio.sleep(0)
        except BusError as exc:
            _log.warning("%s: the plan waits for the bus: %s", service, exc)
            self.touch([service])
            await asyncio.sleep(_RETRY)
        self._held.forget_dead(service, self._fleet.state)

    async def _carry_out(self, service: str) -> None:
        state, now = self._fleet.state, time.monotonic()
        for held in self._held.of(service).values():
            if not held.ended:
                held.instance.story.reassert()  # the store may have come back with an older record
        local = self._held.locals(service)
        await self._act_all(service, plan(service, state, self._me, local, now=now, at=self._now()))

    async def _act_all(self, service: str, actions: list[Action]) -> None:
        """Begin with `actions` in their order, some at once: a dead host's claims are many, and
        each waits for the disk of NATS. What the bus prevents, of all, is raised in the end.
        """
        if not actions:
            return  # as nearly always
        left, failures = iter(actions), list[BusError]()

        async def act() -> None:
            for action in left:
                if self._closing:
                    return
                if not self._current():
                    self.touch([service])  # what is left, as it is seen then
                    return
                try:
                    await self._act(service, action)
                except BusError as exc:
                    failures.append(exc)
                except ProtocolError as exc:
                    self._teller.connection.metrics.refuse("plans", "unreadable record")
                    _log.error("%s: %s cannot be carried out: %s", service, action, exc)

        async with task_scope() as tasks:
            at_once = min(_AT_ONCE, len(actions))
            await asyncio.gather(*(tasks.create_task(act()) for _ in range(at_once)))
        if failures:
            raise failures[0]

    async def _act(self, service: str, action: Action) -> None:
        match action:
            case Drain(slot=slot, reason=reason):
                instance = self._held.of(service)[slot].instance
                decision = self._fleet.state.services[service].decision
                instance.story.traceparent = decision.traceparent if decision else ""
                instance.leave(reason)
            case Release(slot=slot):
                await self._claims.release(service, slot)
            case Discard(slot=slot):
                await self._claims.discard(service, slot)
            case GiveUp(slot=slot):
                await self._claims.give_up(service, slot)
            case Claim(slot=slot):
                if claim := await self._claims.take(service, slot):
                    self._make(service, slot, claim)
            case Make(slot=slot):
                await self._make_again(service, slot)

    # ── acting ───────────────────────────────────────────────────────────────────────────

    def _remake(self) -> None:
        """While no plan can be made: what this host has, it keeps alive, but for what is fenced."""
        if self._closing:
            return
        for service in self._held.services:
            record = self._fleet.state.services.get(service)
            config = self._workshop.config_of(service, record) if record else None
            if config is None or config.fence:
                continue
            local, now = self._held.locals(service), time.monotonic()
            for slot in remake(service, self._fleet.state, self._me, local, now=now):
                self._make(service, slot, None)

    async def _make_again(self, service: str, slot: int) -> None:
        """Have an instance live in a slot of this host's."""
        record = self._fleet.state.services.get(service)
        there = self._fleet.slots.get(slot_key(service, slot))
        if record is None or there is None or not self._me.holds(there.value):
            return  # the plan is older than the records
        if self._claims.can_make(service, record):
            self._make(service, slot, None)
        else:
            await self._claims.release(service, slot)  # for a host that can

    def _make(self, service: str, slot: int, claim: Record[SlotRecord] | None) -> None:
        """Have a new instance live in a slot of this host; `claim` is its record if it is there
        already, else the instance's story writes it.
        """
        record = self._fleet.state.services.get(service)
        config = self._workshop.config_of(service, record) if record else None
        if self._closing or record is None or config is None:
            return  # a claim is given up with the others
        before = self._held.at(service, slot)
        entry = JournalEntry(
            slot=slot,
            config=claim.value.config if claim else record.config_id,
            service=config,
            overrides=record.config,
            life=(
                lifecycle.Life(info=claim.value.info) if claim else self._claims.new_life(service)
            ),
            failures=before.failures if before else 0,
        )
        self._begin(self._held.hold(self._assemble(entry, claim, None), entry), before)

    def _assemble(
        self, entry: JournalEntry, claim: Record[SlotRecord] | None, handle: Handle | None
    ) -> Instance:
        record = self._fleet.state.services.get(entry.life.info.service)
        decision = record.decision if record else None
        story = InstancePublication(
            self._teller,
            entry,
            claim,
            lost=lambda reason: instance.leave(reason),  # noqa: PLW0108 (bound below)
            traceparent=decision.traceparent if decision else "",
        )
        instance = Instance(self._workshop.spec(entry), story, self._workshop.around, handle)
        return instance

    def _begin(self, held: LocalSlot, before: LocalSlot | None = None) -> None:
        assert self._tasks is not None
        self._tasks.create_task(self._live(held, before), name=f"instance-{held.instance.id}")

    async def _live(self, held: LocalSlot, before: LocalSlot | None) -> None:
        """One instance, from its intent on disk to the last that is told of it; `before` is what
        its slot held until then, whose count it takes over.
        """
        instance = held.instance
        story = instance.story
        info, slot = story.life.info, story.entry.slot
        async with task_scope() as tasks:
            tasks.create_task(story.run(), name=f"story-{story.id}")
            if before is not None and before.settled:
                before.instance.story.forget()  # together with the intent: one of them counts
            await story.begin()
            await instance.run()
            held.ended = True
            if instance.state is InstanceState.FAILED:
                held.count(self._workshop.timing, self._now())
                if instance.failure and instance.life.info.ready_at is None:
                    await self._rollouts.failed(info.service, slot, instance.failure)
            self.touch([info.service])
            await story.settled()
        self._held.settle(held)
        self._fleet.unsee(info.service, slot, story.id)
        self.touch([info.service])

    def _now(self) -> datetime:
        return self._workshop.around.clock()
