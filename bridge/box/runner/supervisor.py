"""Carrying out the plans: plans each changed service, acts on the plan, owns the instances.

Every instance is a task of the supervisor; a bug in one ends the Box. A claim is written before
anything is created, and given up after the instance has ended and that is published. While the Box
cannot plan, as when it is cut off, it still replaces instances that end in slots it holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Final

from bridge.box.fleet.claims import Claims
from bridge.box.fleet.decisions import Decisions
from bridge.box.fleet.listener import FleetListener
from bridge.box.fleet.rollout_driver import RolloutDriver
from bridge.box.fleet.view import FleetView
from bridge.box.journal.entry import JournalEntry
from bridge.box.runner.instance import Instance
from bridge.box.runner.instance_specs import InstanceSpecs
from bridge.box.runner.local_slots import LocalSlot, LocalSlots
from bridge.box.runner.publication import PublicationContext
from bridge.box.runtimes.base import Handle
from bridge.box.scheduler.planner import (
    Action,
    Avoid,
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
from bridge.log_limit import LimitedLog, cause_of
from bridge.protocol import InstanceState
from bridge.settings import ServiceConfig
from bridge.subjects import slot_key, valid_trace
from bridge.tasks import task_scope

_log = logging.getLogger(__name__)

_TICK: Final = 5.0  # seconds after which every service is planned again, changed or not
_CLOSE_CHECK: Final = 0.05  # seconds between checks while closing
_RELEASE_TIMEOUT: Final = 5.0  # seconds; a claim that stays is given up with the host's lease
_CONCURRENCY: Final = 16  # actions of one plan that wait for the bus at the same time
_RETRY: Final = 0.25  # seconds before a plan that the bus prevented is tried again


_BEFORE_START: Final = frozenset({InstanceState.CREATING, InstanceState.BOOTING})


class Supervisor(FleetListener):
    """See the module. `run` works until cancelled.

    It plans only while `may_plan` is true, and makes instances only while `may_make` is: a host
    whose disk is full gives up the slots whose instance has ended.
    """

    def __init__(
        self,
        me: HostIdentity,
        fleet: FleetView,
        decisions: Decisions,
        publication: PublicationContext,
        specs: InstanceSpecs,
        may_plan: Callable[[], bool],
        may_make: Callable[[], bool],
    ) -> None:
        self._me = me
        self._fleet = fleet
        self._publication = publication
        self._specs = specs
        self._context = context = specs.context
        self._may_plan = may_plan
        self._log = LimitedLog(_log)
        self._may_make = may_make
        self._claims = Claims(
            me, fleet, decisions, publication.registrations, specs.services, context.clock
        )
        self._rollouts = RolloutDriver(me.host, fleet, decisions, context.clock)
        self._slots = LocalSlots(me)
        self._adopted: list[LocalSlot] = []
        self._dirty: set[str] = set()
        self._wake = asyncio.Event()
        self._checked_at = time.monotonic()
        self._tick_at = self._checked_at + _TICK
        self._closing = ""
        self._tasks: asyncio.TaskGroup | None = None

    # ── called by other components ───────────────────────────────────────────────────────

    def instances(self) -> Iterator[Instance]:
        """The instances on this host that have not ended."""
        return self._slots.instances()

    def find(self, instance_id: str) -> Instance | None:
        """The instance of this id, None if it has ended or is not on this host."""
        return self._slots.find(instance_id)

    def processes(self) -> set[int]:
        """The process ids of the instances on this host that have not ended."""
        entries = [instance.publication.entry for instance in self.instances()]
        return {entry.identity.pid for entry in entries if entry.identity is not None}

    async def adopt(self, entries: Iterable[JournalEntry]) -> None:
        """Adopt the instances of an earlier process of this Box; call it before `run`."""
        for entry in sorted(entries, key=lambda entry: entry.life.info.created_at):
            info = entry.life.info
            handle = None
            started = entry.identity is not None or info.state not in _BEFORE_START
            if started and info.state not in lifecycle.ENDED:
                handle = await self._context.runtime.adopt(
                    self._specs.spec(entry), entry.identity, entry.port
                )
            slot = self._slots.put(self._instance(entry, None, handle), entry)
            self._adopted.append(slot)
            self._end_unoffered(slot)

    def offer(self, services: Mapping[str, ServiceConfig]) -> None:
        """Create instances of these services from now on; those of others drain."""
        self._specs.offer(services)
        for instance in list(self.instances()):
            if slot := self._slots.at(instance.life.info.service, instance.publication.entry.slot):
                self._end_unoffered(slot)
        self.plan_needed(None)

    def _end_unoffered(self, slot: LocalSlot) -> None:
        entry = slot.instance.publication.entry
        record = self._fleet.state.services.get(entry.life.info.service)
        if not self._specs.may_stay(entry, record):
            slot.instance.leave("its service is no longer offered on this host")

    def plan_needed(self, services: Iterable[str] | None) -> None:
        """Plan these services again; None means all of them."""
        self._dirty.update(self._all_services() if services is None else services)
        self._wake.set()

    def slot_owner_changed(
        self, service: str, slot: int, before: SlotRecord | None, claim: SlotRecord | None
    ) -> None:
        """Drain an instance whose slot another host has claimed, or claim a lost slot again.

        This does not wait for the plan of the service: other plans may take long, and other hosts
        wait for a lost claim no longer than a lease.
        """
        local = self._slots.at(service, slot)
        if local is None or local.ended:
            return
        if claim is not None:
            if not self._me.holds(claim):
                local.instance.leave(f"slot taken by {claim.host}")
        elif self._fleet.state.may_be_held(service, slot):
            local.instance.publication.reassert()

    async def close(self, reason: str) -> None:
        """Drain every instance and start none; returns when all have ended.

        Their slots are given up before, unless the bus does not answer for 5 s: then the next
        process of this Box gives them up.
        """
        self._closing = reason
        while remaining := list(self.instances()):
            for instance in remaining:
                instance.leave(reason)
            await asyncio.sleep(_CLOSE_CHECK)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_RELEASE_TIMEOUT):
                while self._slots or self._slots.vacant(self._fleet.state):
                    self.plan_needed(None)
                    await asyncio.sleep(_CLOSE_CHECK)

    # ── the loop ─────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Plan and act until cancelled."""
        async with task_scope() as self._tasks:
            for slot in self._adopted:
                self._start(slot)
            while True:
                await self._wait_due()
                if not self._may_plan():
                    self._replace_ended()
                    await asyncio.sleep(_RETRY)
                    self._wake.set()
                    continue
                dirty, self._dirty = sorted(self._dirty, reverse=True), set()
                while dirty and self._may_plan():  # a loss of the store may show up in between
                    await self._attend(dirty.pop())
                if dirty:
                    self.plan_needed(dirty)

    def _all_services(self) -> set[str]:
        return {*self._specs.services, *self._slots.services, *self._fleet.state.services}

    async def _wait_due(self) -> None:
        """Wait for a change, for the end of a back-off, or for the tick.

        Changes do not delay the other two, and neither is missed if it comes during a plan.
        """
        due = self._slots.retries(since=self._checked_at)
        with contextlib.suppress(TimeoutError):
            until = min([self._tick_at, *due.values()])
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                await self._wake.wait()
        self._wake.clear()
        self._checked_at = now = time.monotonic()
        self._dirty.update(service for service, at in due.items() if at <= now)
        if now >= self._tick_at:
            self._tick_at = now + _TICK
            self._dirty |= self._all_services()

    async def _attend(self, service: str) -> None:
        """Carry out the plan for one service; retry what the bus prevents."""
        try:
            if self._closing:
                for slot in self._slots.vacant(self._fleet.state, service):
                    await self._claims.release(service, slot)
            else:
                await self._carry_out(service)
                await self._rollouts.step(service)
        except Conflict as exc:
            _log.debug("%s: another Box was faster: %s", service, exc)
            self.plan_needed([service])  # by then the view shows what the other Box wrote
            await asyncio.sleep(0)
        except BusError as exc:
            self._log.report(cause_of(exc), "%s: the plan waits for the bus: %s", service, exc)
            self.plan_needed([service])
            await asyncio.sleep(_RETRY)
        self._slots.prune(service, self._fleet.state)

    async def _carry_out(self, service: str) -> None:
        state, now = self._fleet.state, time.monotonic()
        for slot in self._slots.of(service).values():
            if not slot.ended:
                slot.instance.publication.reassert()  # the store may have an older record
        local = self._slots.to_plan(service)
        await self._act_all(service, plan(service, state, self._me, local, now=now, at=self._now()))

    async def _act_all(self, service: str, actions: list[Action]) -> None:
        """Take `actions` in their order, several at a time.

        A dead host may have many claims, and each write waits for the disk of NATS. All actions are
        tried; then the first error of the bus is raised.
        """
        if not actions:
            return  # as nearly always
        left, failures = iter(actions), list[BusError]()

        async def act() -> None:
            for action in left:
                if self._closing:
                    return
                if not self._may_plan():
                    self.plan_needed([service])  # plan the rest again when the view is current
                    return
                try:
                    await self._act(service, action)
                except BusError as exc:
                    failures.append(exc)
                except ProtocolError as exc:
                    self._publication.connection.metrics.refuse("plans", "unreadable record")
                    self._log.report(
                        cause_of(exc),
                        "%s: %s cannot be carried out: %s",
                        service,
                        action,
                        exc,
                        level=logging.ERROR,
                    )

        async with task_scope() as tasks:
            count = min(_CONCURRENCY, len(actions))
            await asyncio.gather(*(tasks.create_task(act()) for _ in range(count)))
        if failures:
            raise failures[0]

    async def _act(self, service: str, action: Action) -> None:
        match action:
            case Drain(slot=slot, reason=reason):
                instance = self._slots.of(service)[slot].instance
                instance.publication.traceparent = self._traceparent(service)
                instance.leave(reason)
            case Release(slot=slot):
                await self._claims.release(service, slot)
            case Discard(slot=slot):
                await self._claims.discard(service, slot)
            case Avoid(slot=slot, host=host):
                await self._claims.avoid(service, slot, host)
            case GiveUp(slot=slot):
                await self._claims.give_up(service, slot)
            case Claim(slot=slot):
                if self._may_make() and (claim := await self._claims.take(service, slot)):
                    self._create(service, slot, claim)
            case Make(slot=slot):
                await self._create_or_release(service, slot)

    # ── creating instances ───────────────────────────────────────────────────────────────

    def _replace_ended(self) -> None:
        """Replace ended instances in slots of this host while no plan can be made.

        Fenced services are left out: their instances must not outlive the host's lease.
        """
        if self._closing or self._publication.journal.problem:
            return
        for service in self._slots.services:
            record = self._fleet.state.services.get(service)
            config = self._specs.config_of(service, record) if record else None
            if config is None or config.fence:
                continue
            local, now = self._slots.to_plan(service), time.monotonic()
            for slot in remake(service, self._fleet.state, self._me, local, now=now):
                self._create(service, slot, None)

    async def _create_or_release(self, service: str, slot: int) -> None:
        """Create an instance in a slot of this host, or release the slot for a host that can."""
        record = self._fleet.state.services.get(service)
        claim = self._fleet.slots.get(slot_key(service, slot))
        if record is None or claim is None or not self._me.holds(claim.value):
            return  # the plan is older than the records
        before = self._slots.at(service, slot)
        if self._may_make() and self._claims.can_make(service, record):
            self._create(service, slot, None)
        elif before is None or before.settled:
            await self._claims.release(service, slot)

    def _create(self, service: str, slot: int, claim: Record[SlotRecord] | None) -> None:
        """Create an instance in a slot of this host.

        `claim` is its slot record if that exists already, else its publication writes the record.
        """
        record = self._fleet.state.services.get(service)
        config = self._specs.config_of(service, record) if record else None
        if self._closing or record is None or config is None:
            return  # a claim is given up with the others
        before = self._slots.at(service, slot)
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
        self._start(self._slots.put(self._instance(entry, claim, None), entry), before)

    def _instance(
        self, entry: JournalEntry, claim: Record[SlotRecord] | None, handle: Handle | None
    ) -> Instance:
        return Instance(
            self._specs.spec(entry),
            self._context,
            self._publication,
            entry,
            claim=claim,
            handle=handle,
            traceparent=self._traceparent(entry.life.info.service),
        )

    def _traceparent(self, service: str) -> str:
        """The trace of the service's last decision, "" if it has none, or no valid one."""
        record = self._fleet.state.services.get(service)
        return valid_trace(record.decision.traceparent) if record and record.decision else ""

    def _start(self, slot: LocalSlot, before: LocalSlot | None = None) -> None:
        assert self._tasks is not None
        self._tasks.create_task(self._live(slot, before), name=f"instance-{slot.instance.id}")

    async def _live(self, slot: LocalSlot, before: LocalSlot | None) -> None:
        """Run one instance, from its intent on disk until its end is published.

        It takes the count of failures over from `before`, the previous content of the slot.
        """
        instance = slot.instance
        publication = instance.publication
        service, number = publication.life.info.service, publication.entry.slot
        async with task_scope() as tasks:
            tasks.create_task(publication.run(), name=f"publication-{publication.id}")
            if before is not None and before.settled:
                # In the same transaction as the intent: exactly one of the two has the count.
                before.instance.publication.forget()
            await instance.write_intent()
            await instance.run()
            slot.ended = True
            if slot.failed:
                slot.count_failure(self._specs.timing, self._now())
                if instance.failure and instance.life.info.ready_at is None:
                    await self._rollouts.count_failure(service, number, instance.failure)
            self.plan_needed([service])
            await publication.wait_published()
        self._slots.settle(slot)
        self._fleet.index.end_own_instance(service, number, publication.id)
        self.plan_needed([service])

    def _now(self) -> datetime:
        return self._context.clock()
