"""One instance from its creation to its end: acts on the runtime, tells its story.

What the Box is about to do with it is on disk before it is done, and what came of it is told
after: whenever the Box is killed, its next life can go on from what is written. An instance that
is to go is withdrawn from gateways first, goes on serving until they have let go of it, then
until its requests are done, and only then is asked to end.

An instance that registers itself is Ready as its probe says, like any other, and is withdrawn by
its Box all the same: it may be past speaking for itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from datetime import datetime
from typing import Final

from bridge.box.runner.context import InstanceContext
from bridge.box.runner.probes import until_next
from bridge.box.runner.publication import InstancePublication
from bridge.box.runtimes.base import Exit, Handle, Spec, Usage
from bridge.box.state import lifecycle
from bridge.box.state.lifecycle import Life
from bridge.errors import InstanceError, PortTaken
from bridge.protocol import (
    InstanceDeregistration,
    InstanceEvent,
    InstanceHealth,
    InstanceRegistration,
    InstanceState,
)
from bridge.tasks import run_unless, task_scope
from bridge.validation import HEALTHY_KEY, endpoint_of

_log = logging.getLogger(__name__)

_PORT_TRIES: Final = 5
_FIRST_PROBE: Final = 0.05  # seconds; probes before Ready come slower and slower
_SLOWEST_PROBE: Final = 0.5
_TELL_PATIENCE: Final = 5.0  # seconds to wait for an outage of the bus before draining goes on
_LOOK: Final = 0.1  # seconds between looks at the requests in flight while draining

_PASSES: Final = "the probe passes"

_S = InstanceState


class Instance:
    """See the module. `run` lives its life and returns when it has ended.

    `handle` is its process if an earlier life of this Box made it.
    """

    def __init__(
        self,
        spec: Spec,
        story: InstancePublication,
        around: InstanceContext,
        handle: Handle | None = None,
    ) -> None:
        self.story = story
        self._spec = spec
        self._config = story.entry.service
        self._speaks_for_itself = self._config.registration == "self"
        self._around = around
        self._handle = handle
        self._adopted = handle is not None
        self._leave = asyncio.Event()
        self._reason = ""
        self._ready_at: float | None = None
        self._passes, self._why = self.life.info.health.healthy, _PASSES
        self.failure = ""

    # ── what others ask and order ────────────────────────────────────────────────────────

    @property
    def id(self) -> str:
        return self.story.id

    @property
    def life(self) -> Life:
        """The instance as its story has told it so far."""
        return self.story.life

    @property
    def state(self) -> InstanceState:
        return self.life.info.state

    @property
    def handle(self) -> Handle | None:
        """The runtime's handle while there is a load to measure."""
        measured = self.state in (*lifecycle.SERVING, _S.DRAINING)
        return self._handle if measured else None

    @property
    def leaving(self) -> bool:
        """Whether it was told to go."""
        return self._leave.is_set()

    def served_for(self) -> float:
        """For how many seconds it has been serving, whichever life of its Box saw it begin; 0 if it
        never did.
        """
        return 0.0 if self._ready_at is None else time.monotonic() - self._ready_at

    def leave(self, reason: str) -> None:
        """Have the instance drain and end; `reason` is what its events say."""
        if not self._leave.is_set():
            self._reason = reason
            self._leave.set()

    def sample(self, usage: Usage | None, inflight: int) -> InstanceHealth:
        """Take over a load sample; returns the health to report. What the instance itself has
        said of late wins over it.
        """
        self._judge()
        health = self._around.reports.beside(self.id, usage, inflight)
        life, event = lifecycle.sample(
            self.life, health, self._now(), idle_samples=self._around.idle_samples
        )
        self.story.tell(life, event)
        self._around.see(life.info)
        return self.life.info.health

    # ── the life ─────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Create, boot, serve, and end. Never raises for what the instance itself does."""
        if self.state in lifecycle.SERVING and self.life.info.endpoint is None:
            self.story.tell(self._with_endpoint())  # its record was older than its last event
        self._around.see(self.life.info)
        try:
            if self.state in lifecycle.ENDED:
                self._withdraw(self.story.entry.leaving)
            else:
                await self._live()
        except InstanceError as exc:
            await self._fail(str(exc))
        self._around.reports.forget(self.id)
        if self._handle is not None:
            self._around.runtime.forget(self._handle)

    async def _live(self) -> None:
        """From whatever state it is in to the end, one state after the other."""
        if self._handle is None and not await self._create():
            self._step(_S.STOPPING, self._reason)
            self._step(_S.STOPPED)
            return
        assert self._handle is not None
        if self.state is _S.CREATING:
            self._step(_S.BOOTING)
        if self.state is _S.BOOTING and await self._boot():
            self._become_ready()
        if self.state in lifecycle.SERVING:
            await self._serve()
            self.story.leaves(self._reason)
            self._step(_S.DRAINING, self._reason)
        if self.state is _S.DRAINING:
            await self._drain()
        if self.state is not _S.STOPPING:
            drained = self.state is _S.DRAINING
            self._step(_S.STOPPING, "" if drained else self._reason)
            if not drained:
                self._withdraw(self._reason)  # one that registers itself may have done so already
        await self.story.written()
        end = await self._around.runtime.stop(self._handle, self._config.stop_grace)
        self._step(_S.STOPPED, _ending(end, self._config.stop_grace))

    async def _create(self) -> bool:
        """Whether it was made; False if it was told to leave before."""
        creating = self._around.runtime.create(self._spec, self._note)
        self._handle = await run_unless(self._leave, creating)
        return self._handle is not None

    async def _boot(self) -> bool:
        """Whether it became ready; False if it was told to leave before."""
        runtime, spec = self._around.runtime, self._spec
        assert self._handle is not None
        deadline = asyncio.get_running_loop().time() + self._config.start_timeout
        await self.story.written()
        for _ in range(_PORT_TRIES):
            if not self._adopted:
                await runtime.start(self._handle, self.story.started)
            self._adopted = False
            try:
                ready = await self._wait_ready(deadline)
            except PortTaken as exc:
                if spec.port:
                    raise
                await runtime.stop(self._handle, 0)
                self._note(f"{exc}; trying another port")
            else:
                if ready is not None:
                    return ready
        raise InstanceError(f"lost the race for a port {_PORT_TRIES} times running")

    async def _wait_ready(self, deadline: float) -> bool | None:
        """Whether it became ready; None if it must be started again, for its Box was killed
        before it let it go.
        """
        runtime, handle = self._around.runtime, self._handle
        assert handle is not None
        loop = asyncio.get_running_loop()
        pause, problem, listening = _FIRST_PROBE, "nothing listens on its port", False
        while True:
            end = await self._until_exit_or_leave(pause)
            if end is not None and not end.ran:
                return None
            if end is not None:
                await runtime.listens(handle)  # raises PortTaken if that is why it ended
                raise InstanceError(self._epitaph(end))
            if self._leave.is_set():
                return False
            listening = listening or await runtime.listens(handle)
            if listening:
                answer = await self._around.prober.probe(self._config.probe, handle.port)
                if answer is None:
                    return True
                problem = answer
            if loop.time() > deadline:
                limit = self._config.start_timeout
                raise InstanceError(f"not ready within {limit:g} s: {problem}")
            pause = min(pause * 1.5, _SLOWEST_PROBE)

    def _become_ready(self) -> None:
        self._tell(lifecycle.step(self._with_endpoint(), _S.READY, self._now()))

    def _with_endpoint(self) -> Life:
        assert self._handle is not None
        at = endpoint_of(self._around.address, self._handle.port)
        return lifecycle.serve_at(self.life, at)

    async def _serve(self) -> None:
        """Return when told to leave; raises InstanceError when the instance ends by itself."""
        since = self.life.info.ready_at or self._now()  # no monotonic clock outlives its process
        self._ready_at = time.monotonic() - max(0.0, (self._now() - since).total_seconds())
        self._register()
        async with task_scope() as tasks:
            tasks.create_task(self._check_health(), name=f"health-{self.id}")
            end = await self._until_exit_or_leave(None)
        if end is not None:
            raise InstanceError(self._epitaph(end))

    async def _check_health(self) -> None:
        assert self._handle is not None
        loop, probe, failures = asyncio.get_running_loop(), self._config.probe, 0
        while True:
            await asyncio.sleep(until_next(loop.time(), probe.interval))
            problem = await self._around.prober.probe(probe, self._handle.port)
            failures = failures + 1 if problem else 0
            if failures in (0, probe.failures):
                self._passes, self._why = not failures, problem or _PASSES
                self._judge()

    def _judge(self) -> None:
        """Whether it is healthy, as it says itself, else as its probe does."""
        if self.state not in lifecycle.SERVING:
            return
        healthy, why = self._passes, self._why
        if report := self._around.reports.of(self.id):
            healthy, why = report.health.healthy, "the instance says so"
        if judged := lifecycle.judge(self.life, healthy, self._now(), why):
            self._tell(judged)
            self._register()

    async def _drain(self) -> None:
        """Let gateways let go, then let requests end, but for `drain_timeout` seconds at most."""
        assert self._handle is not None
        self._withdraw(self.story.entry.leaving)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TELL_PATIENCE):
                await self.story.settled()
        if await self._ended_within(self._config.deregister_delay):
            return
        since = time.monotonic()
        while await self._has_requests(since):
            if time.monotonic() >= since + self._config.drain_timeout:
                self._note(f"requests still in flight after {self._config.drain_timeout:g} s")
                return
            if await self._ended_within(_LOOK):
                return

    async def _has_requests(self, since: float) -> bool:
        """Whether requests are in flight. That there are none it may have said before the last one
        came: only what it said after `since`, when gateways had let go, stands against the count.
        """
        assert self._handle is not None
        connections = (await self._around.traffic.inflight())[self._handle.port]
        report = self._around.reports.of(self.id)
        if report is None:
            return connections > 0
        return report.health.inflight_requests > 0 or (connections > 0 and report.at < since)

    async def _ended_within(self, seconds: float) -> bool:
        """Whether the instance ended by itself; one that failed raises InstanceError."""
        assert self._handle is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                end = await self._around.runtime.watch(self._handle)
                if end != Exit():
                    raise InstanceError(self._epitaph(end))
                return True
        return False

    async def _until_exit_or_leave(self, timeout: float | None) -> Exit | None:
        """How the instance ended, if it did; returns as well when told to leave, or in time."""
        assert self._handle is not None
        async with task_scope() as tasks:
            exiting = tasks.create_task(self._around.runtime.watch(self._handle))
            leaving = tasks.create_task(self._leave.wait())
            await asyncio.wait(
                (exiting, leaving), timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
            return exiting.result() if exiting.done() else None

    async def _fail(self, why: str) -> None:
        self.failure = why
        self.story.leaves(why)
        self._step(_S.FAILED, why)
        self._withdraw(why)
        if self._handle is not None:
            await self.story.written()
            with contextlib.suppress(InstanceError):
                await self._around.runtime.stop(self._handle, 0)

    # ── telling ──────────────────────────────────────────────────────────────────────────

    def _now(self) -> datetime:
        return self._around.clock()

    def _step(self, to: InstanceState, message: str = "") -> None:
        self._tell(lifecycle.step(self.life, to, self._now(), message))

    def _note(self, message: str) -> None:
        self._tell(lifecycle.note(self.life, self._now(), message))

    def _tell(self, told: tuple[Life, InstanceEvent]) -> None:
        life, event = told
        _log.info(
            "%s %s → %s%s",
            self.id,
            event.from_state,
            event.to_state,
            f": {event.message}" if event.message else "",
        )
        self.story.tell(life, event)
        self._around.see(life.info)

    def _register(self) -> None:
        if self._speaks_for_itself:
            return
        info = self.life.info
        assert info.endpoint is not None
        metadata = dict(self._config.metadata)
        if not info.health.healthy:
            metadata[HEALTHY_KEY] = "false"
        self.story.register(
            InstanceRegistration(
                instance_id=info.id,
                service=info.service,
                endpoint=info.endpoint,
                metadata=metadata,
                started_at=info.created_at,
            )
        )

    def _withdraw(self, reason: str) -> None:
        """Have gateways let go of it, if they may know it."""
        if not (self.story.entry.registered or self._speaks_for_itself):
            return
        info = self.life.info
        self.story.register(
            InstanceDeregistration(
                instance_id=info.id, service=info.service, reason=reason[: lifecycle.MAX_MESSAGE]
            )
        )

    def _epitaph(self, end: Exit) -> str:
        assert self._handle is not None
        last = self._around.runtime.last_line(self._handle)
        return f"{end}: {last}" if last else str(end)


def _ending(end: Exit, grace: float) -> str:
    """What to say of an end that was asked for: nothing, unless it had to be forced."""
    return f"killed: it did not end within {grace:g} s" if end.signal == 9 else ""
