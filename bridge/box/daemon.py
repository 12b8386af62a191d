"""A Box: what starts in which order, and what ends it.

However it ends, everything it had begun is in its journal: the next process of this Box goes on
from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from datetime import datetime
from typing import Any, Final

import stamina

from bridge.box.callback_watch import CallbackWatch
from bridge.box.components import Components, Resources
from bridge.box.fleet.host_record import offers
from bridge.box.host_directory import metrics_token, own_directory
from bridge.box.journal.journal import Journal
from bridge.box.journal.store import CUT_OFF, FLEET, JOURNAL
from bridge.box.reload import Changes, Reloader
from bridge.box.runner.foreign_withdrawals import ForeignWithdrawals
from bridge.box.runner.probes import Prober
from bridge.box.runner.recovery import rebuild_entries
from bridge.box.runtimes.base import Runtime
from bridge.box.runtimes.factory import open_runtime
from bridge.box.state.records import HostIdentity
from bridge.bus.core.connection import Connection
from bridge.bus.jetstream.api import is_final
from bridge.descriptors import raise_limit
from bridge.errors import (
    BusError,
    ConfigError,
    ConnectFailed,
    NotPermitted,
    StoreUnsuitable,
    without_secret,
)
from bridge.log_limit import LimitedLog, cause_of
from bridge.observe import Metrics
from bridge.process_rights import forbid_dumps
from bridge.protocol import now
from bridge.settings import Config
from bridge.tasks import run_always, task_scope

_log = logging.getLogger(__name__)

_START_TIMEOUT: Final = 30.0  # seconds for JetStream or a right that the start lacks
_VIEW_TIMEOUT: Final = 10.0  # seconds until the start checks the streams again
_FLUSH_TIMEOUT: Final = 5.0  # seconds for the last events and withdrawals when stopping
_TICK: Final = 0.5  # seconds between checks of the leases and of the readiness

_STOPPED_EARLY: Final = "Box %s was stopped before it was ready"


class Box:
    """One Box. `run` starts it and works until `stop` is called.

    With ``on_exit = "drain"`` no instance outlives a Box that `stop` has stopped. Otherwise, and
    whenever the Box ends because of an error, the instances keep running, and the next process of
    this Box adopts them.
    """

    def __init__(
        self,
        config: Config,
        *,
        metrics: Metrics | None = None,
        clock: Callable[[], datetime] = now,
        source: Callable[[], Config] | None = None,
    ) -> None:
        self._reloader = Reloader(config)
        self._source = source or (lambda: config)
        self.metrics = metrics or Metrics()
        self._clock = clock
        offers(config)  # raises ConfigError for what the runtime cannot honour on any host
        self._ready = asyncio.Event()
        self._stop = asyncio.Event()
        self._components: Components | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def running(
        cls,
        config: Config,
        *,
        clock: Callable[[], datetime] = now,
        source: Callable[[], Config] | None = None,
    ) -> AsyncIterator[Box]:
        """A Box that is ready inside the block, and has stopped after it."""
        box = cls(config, clock=clock, source=source)
        async with task_scope() as tasks:
            work = tasks.create_task(box.run(), name="box")
            await box.wait_ready()
            try:
                yield box
            finally:
                box.stop()
                await asyncio.wait([work])

    @property
    def config(self) -> Config:
        """The configuration in effect, as of the last reload."""
        return self._reloader.config

    async def reload(self) -> Changes:
        """Load the configuration again from `source`, and apply its services. Nothing else changes.

        Raises ConfigError, and changes nothing, if it is wrong, or if the Box is not ready yet.
        """
        try:
            changes = await self._reloader.reload(self._source)
        except ConfigError:
            self.metrics.reload_failed.set(1)
            raise
        self.metrics.reload_failed.set(0)
        return changes

    async def wait_ready(self) -> None:
        """Return when the Box answers requests."""
        await self._ready.wait()

    def stop(self) -> None:
        """Make `run` stop intake, drain its instances or leave them running, and return."""
        self._stop.set()

    async def run(self) -> None:
        """Run until `stop`. Raises the error that keeps the Box from doing its work.

        An error leaves the instances running, whatever `on_exit` is. Cancelled after `stop`, it
        stops at once: instances that would have drained are killed.
        """
        config = self.config
        raise_limit()
        forbid_dumps()
        async with contextlib.AsyncExitStack() as stack:
            callbacks = stack.enter_context(CallbackWatch.installed())
            try:
                resources = await self._open_resources(stack)
            except ConnectFailed:
                if not self.stopping:
                    raise
                _log.warning(_STOPPED_EARLY, config.box.name)
                return
            components = Components.build(resources, checks=[self._reloader.blocker])
            self._components = components
            if self.drains:
                stack.push_async_callback(self._end_instances, resources.runtime)
            tasks = await stack.enter_async_context(task_scope())
            tasks.create_task(run_always(callbacks.run(), "callbacks"), name="callbacks")
            lifecycle = _Lifecycle(components)
            if not await self._start(lifecycle, tasks):
                _log.warning(_STOPPED_EARLY, config.box.name)
                return
            tasks.create_task(run_always(self._reloader.run(), "reload"), name="reload")
            self._reloader.attach(components)
            self._ready.set()
            _log.info("Box %s is ready: %s", config.box.name, ", ".join(config.services))
            await self._stop.wait()
            _log.info(
                "Box %s is stopping: its instances %s",
                config.box.name,
                "drain" if self.drains else "keep running",
            )
            await lifecycle.stop(drain=self.drains)

    async def _open_resources(self, stack: contextlib.AsyncExitStack) -> Resources:
        """Open what every component needs until `stack` closes it. Raises ConnectFailed, too, if
        `stop` comes before there is a connection.
        """
        config = self.config
        host_id = stack.enter_context(own_directory(config.data_dir))
        if config.box.metrics:
            self.metrics.serve(config.box.metrics, token=metrics_token(config.data_dir))
        journal = await stack.enter_async_context(Journal.open(config.data_dir / JOURNAL))
        journal.set_fact(FLEET, " ".join([config.nats.prefix, *config.nats.urls]))
        prober = await stack.enter_async_context(Prober.open(config.box.address))
        name = f"box-bridge {config.box.name}"
        connection = await stack.enter_async_context(self._connect(name))
        intake = await stack.enter_async_context(self._connect(f"{name} requests"))
        if context := config.nats.context:
            _log.info("NATS is %s, of the context %s", ", ".join(config.nats.urls), context)
        self._warn_of_address(connection)
        return Resources(
            config=config,
            me=HostIdentity(host=config.box.name, host_id=host_id),
            clock=self._clock,
            connection=connection,
            intake=intake,
            journal=journal,
            runtime=await open_runtime(config, host_id),
            prober=prober,
        )

    @property
    def drains(self) -> bool:
        """Whether its instances end with it."""
        return self.config.box.on_exit == "drain"

    @property
    def ready(self) -> bool:
        """Whether it has been ready to answer requests since it was started."""
        return self._ready.is_set()

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stop.is_set()

    def blocker(self) -> str | None:
        """Why it does not answer requests now; None while it does."""
        if self.stopping:
            return "this Box is stopping"
        if self._components is None or not self.ready:
            return "this Box is starting"
        return self._components.fleet.readiness.blocker()

    async def _start(self, lifecycle: _Lifecycle, tasks: asyncio.TaskGroup) -> bool:
        """Whether the start was completed; False if `stop` ended it.

        A Box that drains completes its start if it can, because it has to take over its instances
        before it can drain them.
        """
        start = tasks.create_task(lifecycle.start(tasks), name="start")
        stop = tasks.create_task(self._stop.wait(), name="stop")
        await asyncio.wait((start, stop), return_when=asyncio.FIRST_COMPLETED)
        if not start.done() and self.drains:
            await asyncio.wait((start,), timeout=_FLUSH_TIMEOUT)
        if not start.done():
            return False
        await start
        return True

    async def _end_instances(self, runtime: Runtime) -> None:
        """End what is left of the instances, after `stop` alone: an error must not end them."""
        if self.stopping:
            await runtime.end_all()
        else:
            _log.warning(
                "Box %s was not stopped in order: its instances keep running, and its next process "
                "takes them over",
                self.config.box.name,
            )

    def _connect(self, name: str) -> contextlib.AbstractAsyncContextManager[Connection]:
        return Connection.open(
            self.config.nats,
            name=name,
            metrics=self.metrics,
            waiting=self._report_wait,
            give_up=self._stop,
        )

    def _report_wait(self, exc: ConnectFailed) -> None:
        urls = ", ".join(map(without_secret, exc.urls))
        _log.warning("Waiting for NATS at %s: %s. %s", urls, exc.reason, exc.cure_sentence)

    def _warn_of_address(self, connection: Connection) -> None:
        address = self.config.box.address
        if address.startswith("127.") and not connection.is_local:
            _log.warning(
                "instances register at %s, which only this host can reach, but NATS is on "
                'another host: set [box] address = "…"',
                address,
            )


class _Lifecycle:
    """Starts and stops the components of one Box, in the order that keeps its promises."""

    def __init__(self, components: Components) -> None:
        self._components = components
        self._resources = components.resources
        self._fleet = components.fleet
        self._runner = components.runner
        self._log = LimitedLog(_log)

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Streams, views, earlier instances, lease, then work; requests come last."""
        intake, fleet, runner = self._resources.intake, self._fleet, self._runner
        await self._insist(fleet.streams.restore)
        for view in fleet.view.views:
            name = f"view-{view.bucket}"
            tasks.create_task(run_always(view.run(), name), name=name)
        await intake.listen(intake.subjects.all_stats, fleet.view.take_stats)
        await intake.listen(intake.subjects.all_health, runner.self_reports.take)
        await self._insist(self._wait_view)
        # Before anything is adopted: a clone must not adopt what the original host runs.
        await self._insist(fleet.lease.wait_vacant)
        self._resources.journal.set_fact(CUT_OFF, "")
        await self._insist(fleet.restorer.restore)
        await self._adopt_instances()
        await self._insist(fleet.lease.take)
        for name, work in self._work().items():
            tasks.create_task(run_always(work, name), name=name)
        if self._resources.config.box.decides:
            await self._insist(self._components.responder.listening)

    def _work(self) -> dict[str, Coroutine[Any, Any, None]]:
        resources, fleet, runner = self._resources, self._fleet, self._runner
        work = {
            "journal": resources.journal.watch(),
            "runtime": resources.runtime.run(),
            "streams": fleet.streams.watch(),
            "stream checks": fleet.streams.run_checks(fleet.resync.request),
            "lease": fleet.lease.run(),
            "outbox": fleet.outbox.run(),
            "withdrawals": ForeignWithdrawals(resources.connection, runner.supervisor.find).run(),
            "registrations": fleet.registrations.run(),
            "resync": fleet.resync.run(self._resume),
            "restorer": fleet.restorer.run(),
            "ticks": self._tick(),
            "supervisor": runner.supervisor.run(),
            "sampler": runner.sampler.run(),
            "logs": runner.log_rotation.run(),
            "orphans": runner.orphans.run(),
        }
        if resources.config.box.decides:
            work["responder"] = self._components.responder.run()
        return work

    async def stop(self, *, drain: bool) -> None:
        """Answer the requests already taken, drain, and publish what is left.

        What cannot be published now, the next process of this Box publishes. The lease is given
        back only where no instance is left.
        """
        fleet = self._fleet
        await self._components.responder.stop_intake()
        fleet.readiness.stop()
        if drain:
            await fleet.lease.close()
            await self._runner.supervisor.close("its Box is stopping")
        try:
            async with asyncio.timeout(_FLUSH_TIMEOUT):
                await fleet.outbox.flush()
                await fleet.registrations.wait_stored()
        except TimeoutError:
            _log.warning(
                "%d events are not published yet: this Box publishes them when it is started again",
                self._resources.journal.backlog,
            )
        if drain:
            await fleet.lease.release()

    async def _insist(self, step: Callable[[], Awaitable[None]]) -> None:
        """Take a step of the start, and retry while the bus cannot do its part.

        On a cluster a stream has no leader for a moment after it was created, or after its server
        died. Raises what is final, and after 30 s the lack of JetStream or of a permission.
        """
        gives_up_at = time.monotonic() + _START_TIMEOUT

        def may_pass(exc: Exception) -> bool:
            if is_final(exc):
                return self._fleet.streams.failure is None
            if isinstance(exc, (NotPermitted, StoreUnsuitable)):
                return time.monotonic() < gives_up_at
            return isinstance(exc, BusError)

        async for attempt in stamina.retry_context(
            on=may_pass, attempts=None, timeout=None, wait_initial=0.1, wait_max=2.0
        ):
            with attempt:
                try:
                    if attempt.num > 1:  # a stream may be gone
                        await self._fleet.streams.restore()
                    await step()
                except BusError as exc:
                    if may_pass(exc):
                        self._log.report(cause_of(exc), "this Box cannot start yet: %s", exc)
                    raise

    async def _wait_view(self) -> None:
        try:
            async with asyncio.timeout(_VIEW_TIMEOUT):
                await self._fleet.view.wait_live()
        except TimeoutError as exc:
            raise BusError(f"no complete view of the fleet within {_VIEW_TIMEOUT:g} s") from exc

    async def _adopt_instances(self) -> None:
        """Adopt the instances of this host's last process, and end those that no record knows."""
        resources = self._resources
        journaled, living = resources.journal.entries, await resources.runtime.list_living()
        rebuilt = await rebuild_entries(
            resources.connection,
            self._fleet.view,
            resources.me,
            resources.config,
            journaled,
            living,
        )
        newer = {entry.life.info.id: entry for entry in rebuilt}
        await self._runner.supervisor.adopt({**journaled, **newer}.values())
        for instance_id in await resources.runtime.sweep():
            _log.warning("%s was left over from an earlier Box process; it was ended", instance_id)

    async def _resume(self) -> None:
        """After a resync: what the store has lost, then the lease, then the registrations."""
        await self._fleet.restorer.restore()
        await self._fleet.lease.renew_now()
        self._fleet.registrations.renew_all()

    async def _tick(self) -> None:
        """Judge the leases and the readiness until cancelled."""
        fleet, ready = self._fleet, self._resources.connection.metrics.ready
        while True:
            fleet.view.tick()
            fleet.resync.watch_view()
            fleet.readiness.refresh()
            ready.set(0 if fleet.readiness.blocker() else 1)
            await asyncio.sleep(_TICK)
