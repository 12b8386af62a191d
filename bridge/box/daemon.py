"""A Box put together: what starts in which order, and what ends it.

However it ends, what it had begun is in its journal: the next life on this host goes on from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from datetime import datetime
from typing import Final

import stamina
from msgspec.structs import replace

from bridge.box.api.admin import AdminApi
from bridge.box.api.scale import ScaleApi
from bridge.box.fleet.decisions import Decisions
from bridge.box.fleet.fence import Fence
from bridge.box.fleet.host_lease import HostLease
from bridge.box.fleet.host_record import host_record, offers
from bridge.box.fleet.readiness import Readiness
from bridge.box.fleet.restore import Restorer
from bridge.box.fleet.streams import Streams
from bridge.box.fleet.view import FleetView
from bridge.box.host_directory import own_directory, place_of
from bridge.box.journal.alerts import Alerts
from bridge.box.journal.journal import Journal
from bridge.box.journal.outbox import Outbox
from bridge.box.journal.store import CUT_OFF, JOURNAL
from bridge.box.runner.context import InstanceContext
from bridge.box.runner.inflight import InflightCounter
from bridge.box.runner.instance_specs import InstanceSpecs
from bridge.box.runner.probes import Prober
from bridge.box.runner.publication import PublicationContext
from bridge.box.runner.recovery import rebuilt
from bridge.box.runner.sampler import Sampler
from bridge.box.runner.self_reports import FRESH_SAMPLES, SelfReports
from bridge.box.runner.supervisor import Supervisor
from bridge.box.runner.withdrawals import Withdrawals
from bridge.box.runtimes.base import Runtime
from bridge.box.runtimes.factory import open_runtime
from bridge.box.runtimes.logs import instances_dir
from bridge.box.state.records import HostIdentity, HostRecord
from bridge.bus.core.connection import Connection
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.publisher import Publisher
from bridge.bus.registrations import Registrations
from bridge.bus.service.discovery import Description
from bridge.bus.service.responder import Responder
from bridge.errors import BusError, NotPermitted, StoreUnsuitable, TopologyMismatch
from bridge.observe import Metrics
from bridge.protocol import format_time, now
from bridge.settings import Config
from bridge.tasks import task_scope
from bridge.version import VERSION

_log = logging.getLogger(__name__)

_PATIENCE: Final = 30.0  # seconds for the first connection, the first complete view, and the like
_FLUSH_PATIENCE: Final = 5.0  # seconds for the last withdrawals when stopping


class Box:
    """One Box. `run` starts it and works until `stop` is called.

    With ``on_exit = "drain"`` no instance outlives it, unless it is killed; else they stay, for
    the Box's next life to take back.
    """

    def __init__(
        self,
        config: Config,
        *,
        metrics: Metrics | None = None,
        clock: Callable[[], datetime] = now,
    ) -> None:
        self.config = config
        self.metrics = metrics or Metrics()
        self._clock = clock
        self.offers = offers(config)
        self._ready = asyncio.Event()
        self._stop = asyncio.Event()
        self._parts: _Parts | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def running(
        cls, config: Config, *, clock: Callable[[], datetime] = now
    ) -> AsyncIterator[Box]:
        """A Box that is ready, and has stopped when the block is over."""
        box = cls(config, clock=clock)
        async with task_scope() as tasks:
            work = tasks.create_task(box.run(), name="box")
            await box.wait_ready()
            try:
                yield box
            finally:
                box.stop()
                await asyncio.wait([work])

    async def wait_ready(self) -> None:
        """Return when the Box answers requests."""
        await self._ready.wait()

    def stop(self) -> None:
        """Have `run` stop intake, drain its instances or leave them running, and return."""
        self._stop.set()

    async def run(self) -> None:
        """Run until `stop`. Raises what keeps the Box from doing its work.

        Cancelled, it stops at once: instances that would have drained are killed.
        """
        config = self.config
        if config.box.metrics:
            self.metrics.serve(config.box.metrics)
        async with contextlib.AsyncExitStack() as stack:
            host_id = stack.enter_context(own_directory(config.data_dir))
            journal = await stack.enter_async_context(Journal.open(config.data_dir / JOURNAL))
            prober = await stack.enter_async_context(Prober.open(config.box.address))
            connection = await stack.enter_async_context(
                Connection.open(
                    config.nats,
                    name=f"box-bridge {config.box.name}",
                    metrics=self.metrics,
                    patience=_PATIENCE,
                )
            )
            self._warn_of_address(connection)
            runtime = await open_runtime(config, host_id)
            self.offers = offers(config, runtime.lacks)
            if self.drains:
                stack.push_async_callback(runtime.end_all)
            tasks = await stack.enter_async_context(task_scope())
            parts = self._parts = _Parts(self, connection, host_id, journal, prober, runtime)
            await parts.start(tasks)
            self._ready.set()
            _log.info("Box %s is ready: %s", config.box.name, ", ".join(config.services))
            await self._stop.wait()
            _log.info(
                "Box %s is stopping: its instances %s",
                config.box.name,
                "drain" if self.drains else "keep running",
            )
            await parts.stop(drain=self.drains)

    @property
    def drains(self) -> bool:
        """Whether its instances end with it."""
        return self.config.box.on_exit == "drain"

    @property
    def ready(self) -> bool:
        """Whether it has been ready to answer requests, since it was started."""
        return self._ready.is_set()

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._stop.is_set()

    def why_not(self) -> str:
        """Why it does not answer requests just now; empty while it does."""
        if self.stopping:
            return "this Box is stopping"
        if self._parts is None or not self.ready:
            return "this Box is starting"
        return self._parts.why_not()

    def description(self, host_id: str) -> Description:
        """What `nats micro` shows of this Box."""
        box = self.config.box
        return Description(
            name=self.config.nats.prefix,
            id=f"{box.name}-{host_id}",
            version=VERSION,
            description=f"Scales services on Box {box.name} and its fleet",
            started=format_time(self._clock()),
            metadata={"host": box.name, "runtime": box.runtime},
        )

    @property
    def clock(self) -> Callable[[], datetime]:
        """The wall clock, for timestamps."""
        return self._clock

    def _warn_of_address(self, connection: Connection) -> None:
        address = self.config.box.address
        if address.startswith("127.") and not connection.is_local:
            _log.warning(
                "instances are announced at %s, which only this host can reach, but NATS is "
                'elsewhere: set [box] address = "…"',
                address,
            )


class _Parts:
    """Everything that works inside a running Box, wired up."""

    def __init__(
        self,
        box: Box,
        connection: Connection,
        host_id: str,
        journal: Journal,
        prober: Prober,
        runtime: Runtime,
    ) -> None:
        config, timing, host = box.config, box.config.timing, box.config.box.name
        self._config = config
        self._connection = connection
        self._journal = journal
        self._runtime = runtime
        self._me = HostIdentity(host=host, host_id=host_id)
        self._streams = Streams(connection, config)
        restore = self._streams.restore
        self._fleet = FleetView(
            connection,
            timing.lease,
            self._touch,
            lambda name, record: self._restorer.saw(name, record),  # noqa: PLW0108 (made below)
            lambda host, order: self._restorer.saw_order(host, order),  # noqa: PLW0108
            lambda service, slot, _, now: self._supervisor.claim_moved(service, slot, now),
        )
        self._restorer = Restorer(self._fleet, journal, timing.heartbeat)
        self._lease = HostLease(
            self._fleet.hosts,
            host,
            host_record(config, box.offers, host_id, runtime.lacks, place_of(config.data_dir)),
            timing,
            self._as_it_is,
            fence := Fence(config.data_dir / "fence"),
        )
        self._registry = Registrations(connection, host, timing, restore)
        self._readiness = Readiness(
            connection,
            self._streams,
            self._fleet,
            self._lease,
            self._registry,
            journal,
            self._restorer,
            runtime,
            timing.lease,
            box.clock,
        )
        self._outbox = Outbox(
            journal,
            Publisher(
                connection,
                connection.subjects.events_stream,
                topology.Lifetimes.of(timing).duplicates,
                box.clock,
                restore,
            ),
            connection.subjects,
            host,
            connection.metrics,
        )
        self._notices = Alerts(
            journal, self._outbox, connection.metrics, box.clock, self._readiness.trouble
        )
        self._reports = SelfReports(
            connection.metrics,
            self._fleet.state.lives,
            self._fleet.state.loads,
            FRESH_SAMPLES * timing.sample,
        )
        ledger = Decisions(
            self._fleet, timing.decide_timeout, box.clock, self._readiness.why_not_current
        )
        around = InstanceContext(
            runtime=runtime,
            prober=prober,
            traffic=InflightCounter(prober, inside=runtime.requests_inside),
            reports=self._reports,
            address=config.box.address,
            idle_samples=timing.idle_samples,
            clock=box.clock,
            see=self._fleet.see,
        )
        self._supervisor = Supervisor(
            self._me,
            self._fleet,
            ledger,
            PublicationContext(
                self._me, connection, journal, self._outbox, self._fleet.slots, self._registry
            ),
            InstanceSpecs(
                services=config.services,
                images=config.box.allow_images,
                around=around,
                instances_dir=instances_dir(config.data_dir),
                cwd=config.directory,
                fence=fence.path,
                timing=timing,
            ),
            self._readiness.may_plan,
        )
        self._sampler = Sampler(
            connection, host, self._fleet, self._supervisor, around, config.data_dir, timing.sample
        )
        told = (connection, self._fleet, ledger, host, box.clock, self._readiness.why_not)
        answers = [*ScaleApi(*told).endpoints(), *AdminApi(*told).endpoints()]
        self._responder = Responder(connection, box.description(host_id), answers)

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Streams, views, what the last life left, lease, then work; requests come last."""
        fleet = self._fleet
        await self._insist(self._streams.restore)
        for view in fleet.views:
            tasks.create_task(view.run(), name=f"view-{view.bucket}")
        subjects = self._connection.subjects
        await self._connection.listen(subjects.all_stats, fleet.take_stats)
        await self._connection.listen(subjects.all_health, self._reports.take)
        await self._first_view()
        await self._insist(self._lease.vacant)  # a clone must not take back what the original runs
        self._journal.set_fact(CUT_OFF, "")
        await self._insist(self._restorer.restore)
        await self._take_back()
        await self._insist(self._lease.take)
        for name, work in {
            "journal": self._journal.watch(),
            "runtime": self._runtime.run(),
            "streams": self._streams.watch(),
            "lease": self._lease.run(),
            "outbox": self._outbox.run(),
            "withdrawals": Withdrawals(self._connection, self._supervisor.living).run(),
            "registry": self._registry.run(),
            "readiness": self._readiness.run(),
            "leases": self._readiness.judge_leases(),
            "supervisor": self._supervisor.run(),
            "sampler": self._sampler.run(),
            "responder": self._responder.run(),
        }.items():
            tasks.create_task(work, name=name)
        await self._responder.listening()

    def why_not(self) -> str:
        """Why this Box must not answer requests now; empty when it may."""
        return self._readiness.why_not()

    async def _insist(self, step: Callable[[], Awaitable[None]]) -> None:
        """Take a step of the start, and again while the bus cannot do its part: on a cluster a
        stream has no leader for a moment when it was just made, or when its server died.
        """
        async for attempt in stamina.retry_context(
            on=_may_pass, attempts=None, timeout=_PATIENCE, wait_initial=0.1, wait_max=2.0
        ):
            with attempt:
                if attempt.num > 1:  # a stream may be gone
                    await self._streams.restore()
                try:
                    await step()
                except BusError as exc:
                    if _may_pass(exc):
                        _log.warning("this Box cannot start yet: %s", exc)
                    raise

    async def _take_back(self) -> None:
        """Go on with the instances of this host's last life, and end what nobody knows."""
        known = self._journal.entries
        found = await self._runtime.list_living()
        entries = await rebuilt(self._connection, self._fleet, self._me, self._config, known, found)
        better = {entry.life.info.id: entry for entry in entries}
        await self._supervisor.take_back({**known, **better}.values())
        for stray in await self._runtime.sweep():
            _log.warning("%s was left behind by this Box's last life; it was ended", stray)

    async def stop(self, *, drain: bool) -> None:
        """Answer what was taken, drain, and tell the rest; what cannot be told now, the next life
        tells. The lease is given back only where nothing is left that runs.
        """
        await self._responder.stop_intake()
        self._readiness.stop()
        if drain:
            await self._lease.close()
            await self._supervisor.close("its Box is stopping")
        try:
            async with asyncio.timeout(_FLUSH_PATIENCE):
                await self._outbox.flush()
                await self._registry.flushed()
        except TimeoutError:
            _log.warning(
                "%d events are yet to be told: the next life of this Box tells them",
                self._journal.backlog,
            )
        if drain:
            await self._lease.release()

    def _as_it_is(self, record: HostRecord) -> HostRecord:
        """This host's record as everybody should know it now."""
        ready = not self._readiness.trouble()
        return replace(record, ready=ready, notices=self._notices.all())

    def _touch(self, services: Iterable[str] | None) -> None:
        self._supervisor.touch(services)

    async def _first_view(self) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._fleet.wait_live()
        except TimeoutError as exc:
            raise BusError(f"no complete view of the fleet within {_PATIENCE:g} s") from exc


def _may_pass(exc: Exception) -> bool:
    """Whether it may help to wait."""
    return isinstance(exc, BusError) and not isinstance(
        exc, (NotPermitted, StoreUnsuitable, TopologyMismatch)
    )
