"""A Box put together: what starts in which order, what ends it, and when it may decide."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Final

from bridge.box.endpoints import Endpoints
from bridge.box.fleet import Fleet
from bridge.box.host import Lease, own_directory
from bridge.box.instance import Surroundings
from bridge.box.ledger import Ledger
from bridge.box.model import HostRecord, Offer
from bridge.box.outbox import Teller
from bridge.box.planner import Me
from bridge.box.probes import Prober
from bridge.box.registry import Registry
from bridge.box.runtimes.base import Runtime
from bridge.box.runtimes.logs import instances_dir
from bridge.box.runtimes.process import ProcessRuntime
from bridge.box.runtimes.rules import fixed_port, refusal
from bridge.box.sampler import Sampler
from bridge.box.supervisor import Supervisor, Workshop
from bridge.box.traffic import Traffic
from bridge.bus import topology
from bridge.bus.connection import Connection
from bridge.bus.discovery import Description
from bridge.bus.publisher import Publisher
from bridge.bus.responder import Responder
from bridge.config import Config
from bridge.errors import BusError, ConfigError, StoreUnsuitable, TopologyMismatch
from bridge.observe import Metrics
from bridge.protocol import ScaleConfig, format_time, now
from bridge.tasks import task_scope
from bridge.version import VERSION

_log = logging.getLogger(__name__)

_PATIENCE: Final = 30.0  # seconds for the first connection, and for the first complete view
_LEASE_TICK: Final = 0.5  # seconds between looks at the leases
_FLUSH_PATIENCE: Final = 5.0  # seconds for the last withdrawals when stopping


def offers(config: Config) -> dict[str, Offer]:
    """What this host offers to run. Raises ConfigError for what its runtime cannot honour."""
    found = {}
    for name, service in config.services.items():
        defaults = ScaleConfig(
            vcpus=service.vcpus,
            memory_mib=service.memory_mib,
            env=service.env,
            port_map=service.port_map,
        )
        if why := refusal(config.box.runtime, defaults, cpus=cpus()):
            raise ConfigError(f"[services.{name}]", why)
        found[name] = Offer(fixed_port=fixed_port(service.port_map))
    return found


def cpus() -> int:
    """The processors that this host's instances may use."""
    return len(os.sched_getaffinity(0))


class Box:
    """One Box. `run` starts it, works until `stop` is called, drains, and returns."""

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
        self._offers = offers(config)
        self._ready = asyncio.Event()
        self._stop = asyncio.Event()
        self._restored = False
        self._restoring = asyncio.Lock()
        self._fatal: asyncio.Future[None] | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, config: Config) -> AsyncIterator[Box]:
        """A Box that is ready, and has drained when the block is over."""
        box = cls(config)
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
        """Have `run` stop intake, drain every instance, and return."""
        self._stop.set()

    async def run(self) -> None:
        """Run until `stop`. Raises what keeps the Box from doing its work.

        Cancelled, it ends its instances at once.
        """
        config = self.config
        if config.box.metrics:
            self.metrics.serve(config.box.metrics)
        async with contextlib.AsyncExitStack() as stack:
            host_id = stack.enter_context(own_directory(config.data_dir))
            prober = await stack.enter_async_context(Prober.open(config.box.address))
            connection = await stack.enter_async_context(
                Connection.open(
                    config.nats,
                    name=f"box-bridge {config.box.name}",
                    metrics=self.metrics,
                    patience=_PATIENCE,
                )
            )
            runtime = self._runtime()
            stack.push_async_callback(runtime.close)
            tasks = await stack.enter_async_context(task_scope())
            await self._work(connection, host_id, prober, runtime, tasks)

    def _runtime(self) -> Runtime:
        box = self.config.box
        return ProcessRuntime(
            instances_dir(self.config.data_dir), box.port_range, self.config.environ
        )

    # ── putting it together ──────────────────────────────────────────────────────────────

    async def _work(
        self,
        connection: Connection,
        host_id: str,
        prober: Prober,
        runtime: Runtime,
        tasks: asyncio.TaskGroup,
    ) -> None:
        config, timing = self.config, self.config.timing
        me = Me(host=config.box.name, host_id=host_id)
        self._warn_of_address(connection)
        self._fatal = asyncio.get_running_loop().create_future()
        await self._restore(connection)

        fleet = Fleet(connection, timing.lease, lambda service: supervisor.touch(service))
        lease = Lease(fleet.hosts, me.host, self._host_record(host_id), timing)
        ledger = Ledger(fleet, timing.decide_timeout)

        async def restore() -> None:
            await self._restore(connection)

        registry = Registry(connection, me.host, timing, restore)
        teller = Teller(connection, Publisher(connection, restore), fleet.slots, registry, me.host)
        around = Surroundings(
            runtime=runtime,
            prober=prober,
            traffic=Traffic(prober),
            address=config.box.address,
            idle_samples=timing.idle_samples,
            clock=self._clock,
        )
        workshop = Workshop(
            services=config.services,
            around=around,
            instances_dir=instances_dir(config.data_dir),
            cwd=config.directory,
            timing=timing,
        )

        def why_not() -> str:
            return self._why_not(connection, lease, fleet)

        supervisor = Supervisor(me, fleet, ledger, teller, workshop, lambda: not why_not())
        endpoints = Endpoints(connection, fleet, ledger, me.host, self._clock, why_not)
        responder = Responder(connection, self._description(host_id), endpoints.all())
        sampler = Sampler(
            connection, me.host, fleet, supervisor, around, config.data_dir, timing.sample
        )

        for view in (fleet.services, fleet.slots, fleet.hosts):
            tasks.create_task(view.run(), name=f"view-{view.bucket}")
        await connection.listen(connection.subjects.all_stats, fleet.take_stats)
        await self._first_view(fleet)
        for stray in await runtime.sweep():
            _log.warning("%s was left behind by this Box's last life; it was ended", stray)
        await lease.take()
        tasks.create_task(lease.run(), name="lease")
        tasks.create_task(registry.run(), name="registry")
        tasks.create_task(supervisor.run(), name="supervisor")
        tasks.create_task(sampler.run(), name="sampler")
        tasks.create_task(self._judge_leases(fleet, why_not), name="leases")
        tasks.create_task(self._mind_connection(connection, lease, registry), name="reconnects")
        tasks.create_task(responder.run(), name="responder")
        await responder.listening()
        self._ready.set()
        _log.info("Box %s is ready: %s", me.host, ", ".join(config.services) or "no services")

        await self._until_stopped()
        _log.info("Box %s is stopping: draining its instances", me.host)
        await responder.stop_intake()
        await lease.close()
        await supervisor.close(f"Box {me.host} is stopping")
        await _flush(registry)
        await lease.release()

    async def _until_stopped(self) -> None:
        assert self._fatal is not None
        async with task_scope() as tasks:
            stopping = tasks.create_task(self._stop.wait())
            await asyncio.wait((stopping, self._fatal), return_when=asyncio.FIRST_COMPLETED)
            if self._fatal.done():
                self._fatal.result()

    async def _first_view(self, fleet: Fleet) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                await fleet.wait_live()
        except TimeoutError as exc:
            raise BusError(f"no complete view of the fleet within {_PATIENCE:g} s") from exc

    def _host_record(self, host_id: str) -> HostRecord:
        box = self.config.box
        return HostRecord(
            host_id=host_id,
            runtime=box.runtime,
            cpus=cpus(),
            max_instances=box.max_instances,
            services=self._offers,
            labels=box.labels,
            version=VERSION,
        )

    def _description(self, host_id: str) -> Description:
        subjects = self.config.nats.subjects
        return Description(
            name=subjects.prefix,
            id=f"{self.config.box.name}-{host_id}",
            version=VERSION,
            description=f"Scales services on Box {self.config.box.name} and its fleet",
            started=format_time(self._clock()),
            metadata={"host": self.config.box.name, "runtime": self.config.box.runtime},
        )

    def _warn_of_address(self, connection: Connection) -> None:
        address = self.config.box.address
        if address.startswith("127.") and not connection.is_local:
            _log.warning(
                "instances are announced at %s, which only this host can reach, but NATS is "
                'elsewhere: set [box] address = "…"',
                address,
            )

    # ── staying fit to decide ────────────────────────────────────────────────────────────

    def _why_not(self, connection: Connection, lease: Lease, fleet: Fleet) -> str:
        """Why this Box must neither decide nor plan now; empty when it may."""
        if self._stop.is_set():
            return "" if fleet.live and connection.connected else "this Box is stopping"
        if not connection.connected:
            return f"this Box is cut off from NATS for {connection.cut_off_for():.0f} s"
        if not self._restored:
            return "this Box is checking its streams after a reconnect"
        if not fleet.live:
            return "this Box's view of the fleet is not current"
        return "" if lease.held else "this Box's own lease is not current"

    async def _judge_leases(self, fleet: Fleet, why_not: Callable[[], str]) -> None:
        while True:
            fleet.tick()
            self.metrics.ready.set(0 if why_not() else 1)
            await asyncio.sleep(_LEASE_TICK)

    async def _restore(self, connection: Connection) -> None:
        """Make sure that the streams exist. What cannot be mended ends the Box."""
        timing, nats = self.config.timing, self.config.nats
        lifetimes = topology.Lifetimes(lease=timing.lease)
        async with self._restoring:
            try:
                created = await topology.ensure(
                    connection, replicas=nats.replicas, lifetimes=lifetimes
                )
            except (TopologyMismatch, StoreUnsuitable) as exc:
                if self._fatal is not None and not self._fatal.done():
                    self._fatal.set_exception(exc)
                raise
        self._restored = True
        if created:
            _log.info("created %s", ", ".join(created))

    async def _mind_connection(
        self, connection: Connection, lease: Lease, registry: Registry
    ) -> None:
        """After each reconnect: the streams first, then the lease, then the registrations."""
        changed = asyncio.Event()

        def on_change(up: bool) -> None:
            self._restored = False
            changed.set()

        unwatch = connection.watch(on_change)
        try:
            while True:
                await changed.wait()
                await connection.wait_connected()
                changed.clear()
                try:
                    await self._restore(connection)
                    await lease.renew_now()
                    registry.renew_all()
                except BusError as exc:
                    _log.warning("not back yet: %s", exc)
                    await asyncio.sleep(_LEASE_TICK)
                    changed.set()
        finally:
            unwatch()


async def _flush(registry: Registry) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_FLUSH_PATIENCE):
            while not registry.flushed:
                await asyncio.sleep(0.05)
