"""One instance from its creation to its end: acts on the runtime, publishes what happens.

Each intent is on disk before the Box acts, and each result is published after: whenever the Box is
killed, its next process goes on from what is written. An instance that is to end is withdrawn from
gateways first, before anything is written. It serves until gateways have stopped routing to it,
then until its requests are done, and only then is stopped. A full disk does not keep it from being
stopped: its end is written when there is room.

An instance that registers itself is Ready by its probe, like any other. Its Box withdraws it as
well, because it may not be able to do so itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from datetime import datetime
from typing import Final

from bridge.box.journal.entry import JournalEntry
from bridge.box.runner.context import InstanceContext
from bridge.box.runner.exit_watch import ExitWatch
from bridge.box.runner.leave_request import LeaveRequest
from bridge.box.runner.probes import NOT_SENT, until_next
from bridge.box.runner.publication import InstancePublication, PublicationContext
from bridge.box.runner.startup import Startup
from bridge.box.runtimes.base import Exit, Handle, Spec, Usage
from bridge.box.state import lifecycle
from bridge.box.state.lifecycle import Life
from bridge.box.state.records import SlotRecord
from bridge.bus.jetstream.kv_view import Record
from bridge.errors import InstanceError
from bridge.protocol import InstanceEvent, InstanceHealth, InstanceState
from bridge.tasks import task_scope
from bridge.validation import HEALTHY_KEY, endpoint_of

_log = logging.getLogger(__name__)

_WITHDRAW_TIMEOUT: Final = 5.0  # seconds that draining waits for the withdrawal to be stored
_WRITE_TIMEOUT: Final = 2.0  # seconds that a stop waits for the journal
_DRAIN_CHECK: Final = 0.1  # seconds between checks of the requests in flight while draining

_PASSES: Final = "the probe passes"

_S = InstanceState


class Instance:
    """See the module. `run` returns when the instance has ended.

    `claim` is its slot record if that exists already. `handle` is its process if an earlier process
    of this Box started it. It leaves if another host turns out to hold its slot.
    """

    def __init__(
        self,
        spec: Spec,
        context: InstanceContext,
        publication: PublicationContext,
        entry: JournalEntry,
        *,
        claim: Record[SlotRecord] | None,
        handle: Handle | None,
        traceparent: str,
    ) -> None:
        self.publication = InstancePublication(
            publication, entry, claim, on_lost=self.leave, traceparent=traceparent
        )
        self._spec = spec
        self._config = entry.service
        self._registers_itself = self._config.registration == "self"
        self._context = context
        self._handle = handle
        self._adopted = handle is not None
        self._leave = LeaveRequest()
        self._ready_at: float | None = None
        self._passes, self._why = self.life.info.health.healthy, _PASSES
        self.failure = ""

    # ── called by the supervisor and the sampler ─────────────────────────────────────────

    @property
    def id(self) -> str:
        return self.publication.id

    @property
    def life(self) -> Life:
        """The instance as it is now."""
        return self.publication.life

    @property
    def state(self) -> InstanceState:
        return self.life.info.state

    @property
    def handle(self) -> Handle | None:
        """The runtime's handle while there is load to measure, else None."""
        # An adopted instance may be Ready and have no endpoint until `run` has set it.
        serves = self.life.info.endpoint is not None
        measured = serves and self.state in (*lifecycle.SERVING, _S.DRAINING)
        return self._handle if measured else None

    @property
    def leaving(self) -> bool:
        """Whether `leave` was called."""
        return self._leave.is_made

    def seconds_serving(self) -> float:
        """Seconds since it became Ready, also under an earlier process of the Box; 0 if never."""
        return 0.0 if self._ready_at is None else time.monotonic() - self._ready_at

    def leave(self, reason: str) -> None:
        """Make the instance drain and end; its events carry `reason`."""
        self._leave.make(reason)

    def sample(self, usage: Usage | None, inflight: int) -> InstanceHealth:
        """Take a load sample; returns the health to report.

        A recent report of the instance itself wins over the sample.
        """
        self._judge()
        health = self._context.reports.merge(self.id, usage, inflight)
        life, event = lifecycle.sample(
            self.life, health, self._now(), idle_samples=self._context.idle_samples
        )
        self.publication.update(life, event)
        self._context.on_change(life.info)
        return self.life.info.health

    # ── the lifecycle ────────────────────────────────────────────────────────────────────

    async def write_intent(self) -> None:
        """Journal that the instance is to be created; returns when that is on disk, or it leaves.

        An instance that leaves without it is not created.
        """
        await self._leave.wait_written(self.publication.write_intent())

    async def run(self) -> None:
        """Create, boot, serve, and end. A failure of the instance itself raises nothing."""
        if self.state in lifecycle.SERVING and self.life.info.endpoint is None:
            # Its slot record was older than its last event when it was adopted.
            self.publication.update(self._with_endpoint())
        self._context.on_change(self.life.info)
        try:
            if self.state in lifecycle.ENDED:
                self._withdraw(self.publication.entry.leaving)
            else:
                await self._run_states()
        except InstanceError as exc:
            await self._fail(str(exc))
        self._context.reports.forget(self.id)
        if self._handle is not None:
            self._context.runtime.forget(self._handle)

    async def _run_states(self) -> None:
        """Go from the current state to the end, one state after the other."""
        if self._handle is None and (self.leaving or not await self._create()):
            self._step(_S.STOPPING, self._leave.reason)
            self._step(_S.STOPPED)
            return
        if self.state is _S.CREATING:
            self._step(_S.BOOTING)
        if self.state is _S.BOOTING and await self._startup().run():
            self._publish(lifecycle.step(self._with_endpoint(), _S.READY, self._now()))
        if self.state in lifecycle.SERVING:
            await self._serve()
            self._withdraw(self._leave.reason)
            self.publication.set_leaving(self._leave.reason)
            self._step(_S.DRAINING, self._leave.reason)
        if self.state is _S.DRAINING:
            await self._drain()
        if self.state is not _S.STOPPING:
            drained = self.state is _S.DRAINING
            if not drained:  # it may have registered itself before it was Ready
                self._withdraw(self._leave.reason)
            self._step(_S.STOPPING, "" if drained else self._leave.reason)
        await self._wait_written()
        end = await self._context.runtime.stop(self._created, self._config.stop_grace)
        self._step(_S.STOPPED, _stop_message(end, self._config.stop_grace))

    async def _create(self) -> bool:
        """Whether it was created; False if `leave` came first."""
        creating = self._context.runtime.create(self._spec, self._note)
        self._handle = await self._leave.run_unless_made(creating)
        return self._handle is not None

    @property
    def _created(self) -> Handle:
        """The runtime's handle, for states after Creating."""
        assert self._handle is not None
        return self._handle

    @property
    def _exit(self) -> ExitWatch:
        return ExitWatch(self._context.runtime, self._created, self._leave)

    def _startup(self) -> Startup:
        return Startup(
            self._spec,
            self._context,
            self.publication,
            self._created,
            self._leave,
            self._note,
            adopted=self._adopted,
        )

    def _with_endpoint(self) -> Life:
        endpoint = endpoint_of(self._context.address, self._created.port)
        return lifecycle.serve_at(self.life, endpoint)

    async def _serve(self) -> None:
        """Return once `leave` is called. Raises InstanceError when the instance ends by itself."""
        since = self.life.info.ready_at or self._now()  # a monotonic clock ends with its process
        self._ready_at = time.monotonic() - max(0.0, (self._now() - since).total_seconds())
        self._register()
        async with task_scope() as tasks:
            tasks.create_task(self._check_health(), name=f"health-{self.id}")
            end = await self._exit.exit_or_leave(None)
        if end is not None:
            raise InstanceError(await self._exit.describe(end))

    async def _check_health(self) -> None:
        loop, probe, failures = asyncio.get_running_loop(), self._config.probe, 0
        while True:
            await asyncio.sleep(until_next(loop.time(), probe.interval))
            problem = await self._context.prober.probe(probe, self._created.port)
            if problem == NOT_SENT:
                continue
            failures = failures + 1 if problem else 0
            if failures in (0, probe.failures):
                self._passes, self._why = not failures, problem or _PASSES
                self._judge()

    def _judge(self) -> None:
        """Judge its health by its own report, or by its probe if there is no recent report."""
        if self.state not in lifecycle.SERVING:
            return
        healthy, why = self._passes, self._why
        if report := self._context.reports.of(self.id):
            healthy, why = report.health.healthy, "the instance reports it"
        if change := lifecycle.judge(self.life, healthy, self._now(), why):
            self._publish(change)
            self._register()

    async def _drain(self) -> None:
        """Wait until gateways have stopped routing to it, then until its requests have ended.

        Requests have `drain_timeout` seconds.
        """
        self._withdraw(self.publication.entry.leaving)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_WITHDRAW_TIMEOUT):
                await self.publication.wait_withdrawn()
        if await self._exit.ended_within(self._config.deregister_delay):
            return
        since = time.monotonic()
        while await self._has_requests(since):
            if time.monotonic() >= since + self._config.drain_timeout:
                self._note(f"requests still in flight after {self._config.drain_timeout:g} s")
                return
            if await self._exit.ended_within(_DRAIN_CHECK):
                return

    async def _has_requests(self, since: float) -> bool:
        """Whether requests are in flight.

        A report of zero requests counts only if it was made after `since`, when gateways had
        stopped routing: an earlier one may have come before the last request.
        """
        connections = (await self._context.inflight.counts())[self._created.port]
        report = self._context.reports.of(self.id)
        if report is None:
            return connections > 0
        return report.health.inflight_requests > 0 or (connections > 0 and report.at < since)

    async def _fail(self, why: str) -> None:
        self.failure = why
        self._withdraw(why)
        self.publication.set_leaving(why)
        self._step(_S.FAILED, why)
        if self._handle is not None:
            await self._wait_written()
            with contextlib.suppress(InstanceError):
                await self._context.runtime.stop(self._handle, 0)

    async def _wait_written(self) -> None:
        """Return when every update so far is on disk, or when a stop must not wait for it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_WRITE_TIMEOUT):
                await self.publication.wait_written()

    # ── publishing ───────────────────────────────────────────────────────────────────────

    def _now(self) -> datetime:
        return self._context.clock()

    def _step(self, to: InstanceState, message: str = "") -> None:
        self._publish(lifecycle.step(self.life, to, self._now(), message))

    def _note(self, message: str) -> None:
        self._publish(lifecycle.note(self.life, self._now(), message))

    def _publish(self, change: tuple[Life, InstanceEvent]) -> None:
        life, event = change
        _log.info(
            "%s %s → %s%s",
            self.id,
            event.from_state,
            event.to_state,
            f": {event.message}" if event.message else "",
        )
        self.publication.update(life, event)
        self._context.on_change(life.info)

    def _register(self) -> None:
        if not self._registers_itself:
            health = {} if self.life.info.health.healthy else {HEALTHY_KEY: "false"}
            self.publication.register(self._config.metadata | health)

    def _withdraw(self, reason: str) -> None:
        """Make gateways stop routing to it, if they may know it."""
        if self.publication.entry.registered or self._registers_itself:
            self.publication.withdraw(reason)


def _stop_message(end: Exit, grace: float) -> str:
    """The message of an ordered end: empty, unless the instance had to be killed."""
    return f"killed: it did not end within {grace:g} s" if end.signal == 9 else ""
