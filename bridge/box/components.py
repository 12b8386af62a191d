"""The components of a Box, built in the order in which they depend on each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from msgspec import Struct
from msgspec.structs import replace

from bridge.box.api.admin import AdminApi
from bridge.box.api.context import ApiContext
from bridge.box.api.logs import LogsApi
from bridge.box.api.scale import ScaleApi
from bridge.box.fleet.decisions import Decisions
from bridge.box.fleet.fence import Fence
from bridge.box.fleet.host_lease import HostLease, LeaseTerm
from bridge.box.fleet.host_record import host_record, offers
from bridge.box.fleet.readiness import Check, Readiness
from bridge.box.fleet.restore import Restorer
from bridge.box.fleet.resync import Resync
from bridge.box.fleet.streams import Streams
from bridge.box.fleet.view import FleetView
from bridge.box.host_directory import place_of
from bridge.box.journal.alerts import Alerts
from bridge.box.journal.journal import Journal
from bridge.box.journal.outbox import Outbox
from bridge.box.runner.context import InstanceContext
from bridge.box.runner.inflight import InflightCounter
from bridge.box.runner.instance_specs import InstanceSpecs
from bridge.box.runner.log_rotation import LogRotation
from bridge.box.runner.orphans import Orphans
from bridge.box.runner.probes import Prober
from bridge.box.runner.publication import PublicationContext
from bridge.box.runner.sampler import Sampler
from bridge.box.runner.self_reports import FRESH_SAMPLES, SelfReports
from bridge.box.runner.supervisor import Supervisor
from bridge.box.runtimes.base import Runtime
from bridge.box.runtimes.logs import instances_dir
from bridge.box.state.records import MAX_NOTICES, MAX_TEXT, HostIdentity, HostRecord
from bridge.bus.core.connection import Connection
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.publisher import Publisher
from bridge.bus.registrations import Registrations
from bridge.bus.service.discovery import Description
from bridge.bus.service.responder import Responder
from bridge.protocol import format_time
from bridge.settings import Config
from bridge.version import VERSION


class Resources(Struct, frozen=True, kw_only=True):
    """What a Box holds open while it runs, and what every component needs.

    `intake` carries what any program may send: requests and reports. The lease and the views use
    `connection`, so that their messages do not queue behind these.
    """

    config: Config
    me: HostIdentity
    clock: Callable[[], datetime]
    connection: Connection
    intake: Connection
    journal: Journal
    runtime: Runtime
    prober: Prober


class FleetComponents(Struct, frozen=True, kw_only=True):
    """What this Box shares with the others, and whether it may act on what it sees."""

    streams: Streams
    view: FleetView
    resync: Resync
    restorer: Restorer
    readiness: Readiness
    fence: Fence
    lease: HostLease
    decisions: Decisions
    outbox: Outbox
    registrations: Registrations


class RunnerComponents(Struct, frozen=True, kw_only=True):
    """What runs and observes the instances of this host."""

    self_reports: SelfReports
    supervisor: Supervisor
    sampler: Sampler
    log_rotation: LogRotation
    orphans: Orphans


class Components(Struct, frozen=True, kw_only=True):
    """A whole Box."""

    resources: Resources
    fleet: FleetComponents
    runner: RunnerComponents
    responder: Responder

    @classmethod
    def build(
        cls, resources: Resources, checks: Sequence[Callable[[], str | None]] = ()
    ) -> Components:
        """Connect everything; nothing works before `daemon` starts it. Raises ConfigError.

        Each of `checks` returns a problem that this host alerts people to, or None.
        """
        fleet = _fleet(resources, checks)
        runner = _runner(resources, fleet)
        return cls(
            resources=resources,
            fleet=fleet,
            runner=runner,
            responder=_responder(resources, fleet, runner),
        )


def _fleet(resources: Resources, checks: Sequence[Callable[[], str | None]]) -> FleetComponents:
    config, connection, clock = resources.config, resources.connection, resources.clock
    timing, host = config.timing, resources.me.host
    streams = Streams(connection, config)
    view = FleetView(connection, timing.lease, host=host, journal=resources.journal)
    resync = Resync(connection, streams, view, resources.journal, clock)
    restorer = Restorer(
        view,
        resources.journal,
        timing.heartbeat,
        resync.request,
        decides=config.box.decides,
    )
    view.subscribe(restorer)
    fence = Fence(config.data_dir / "fence")
    term = LeaseTerm(timing.lease, fence)
    readiness = Readiness(_checks(resources, view, resync, term), timing.lease)
    outbox = _outbox(resources, streams)
    registrations = Registrations(connection, host, timing, streams.restore)
    alerts = Alerts(
        resources.journal,
        outbox,
        connection.metrics,
        clock,
        readiness.trouble,
        [registrations.problem, *checks],
    )
    lease = _lease(resources, view, term, readiness, alerts)
    view.subscribe(lease)
    return FleetComponents(
        streams=streams,
        view=view,
        resync=resync,
        restorer=restorer,
        readiness=readiness,
        fence=fence,
        lease=lease,
        decisions=Decisions(
            view,
            timing.decide_timeout,
            clock,
            readiness.decide_blocker if config.box.decides else _decides_nothing,
        ),
        outbox=outbox,
        registrations=registrations,
    )


def _decides_nothing() -> str:
    """The blocker of each decision on a runner."""
    return "this Box is a runner, which decides nothing"


def _checks(resources: Resources, view: FleetView, resync: Resync, term: LeaseTerm) -> list[Check]:
    """The conditions of readiness; the first that fails is reported."""
    connection, journal, runtime = resources.connection, resources.journal, resources.runtime
    me, place = resources.me, place_of(resources.config.data_dir)

    def cut_off() -> str | None:
        if connection.connected:
            return None
        return f"this Box has been cut off from NATS for {connection.cut_off_for():.0f} s"

    def overwritten() -> str | None:
        record = view.state.hosts.get(me.host)
        if record is not None and (record.host_id, record.place) == (me.host_id, place):
            return None
        return "the record of this host is not the one that this Box wrote"

    return [
        Check("connection", cut_off),
        Check("streams", resync.blocker),
        Check("view", view.blocker),
        Check("lease", term.blocker),
        Check("name", overwritten),
        Check("journal", lambda: journal.problem, local=True, stops_plans=False),
        Check("runtime", lambda: runtime.problem, local=True),
    ]


def _outbox(resources: Resources, streams: Streams) -> Outbox:
    connection, timing = resources.connection, resources.config.timing
    publisher = Publisher(
        connection,
        connection.subjects.events_stream,
        topology.Lifetimes.of(timing).duplicates,
        resources.clock,
        streams.restore,
    )
    return Outbox(
        resources.journal,
        publisher,
        connection.subjects,
        resources.me.host,
        connection.metrics,
    )


def _lease(
    resources: Resources, view: FleetView, term: LeaseTerm, readiness: Readiness, alerts: Alerts
) -> HostLease:
    config, runtime, me = resources.config, resources.runtime, resources.me

    def current(record: HostRecord) -> HostRecord:
        notices = [notice[:MAX_TEXT] for notice in alerts.all()[:MAX_NOTICES]]
        return replace(record, ready=not readiness.trouble(), notices=notices)

    record = host_record(
        config,
        offers(config, runtime.lacks),
        me.host_id,
        runtime.lacks,
        place_of(config.data_dir),
    )
    return HostLease(view.hosts, me.host, record, config.timing, term, current)


def _runner(resources: Resources, fleet: FleetComponents) -> RunnerComponents:
    config, connection, view = resources.config, resources.connection, fleet.view
    timing, runtime, prober = config.timing, resources.runtime, resources.prober
    self_reports = SelfReports(
        connection.metrics,
        view.state.own_instances,
        view.state.loads,
        FRESH_SAMPLES * timing.sample,
    )
    context = InstanceContext(
        runtime=runtime,
        prober=prober,
        inflight=InflightCounter(prober, inside=runtime.requests_inside),
        reports=self_reports,
        address=config.box.address,
        idle_samples=timing.idle_samples,
        clock=resources.clock,
        on_change=view.index.set_own_instance,
    )
    supervisor = _supervisor(resources, fleet, context)
    sampler = Sampler(
        connection,
        resources.me.host,
        view,
        supervisor,
        context,
        config.data_dir,
        config.box.kept,
        timing.sample,
    )
    return RunnerComponents(
        self_reports=self_reports,
        supervisor=supervisor,
        sampler=sampler,
        log_rotation=LogRotation(supervisor, instances_dir(config.data_dir)),
        orphans=Orphans(supervisor.processes),
    )


def _supervisor(
    resources: Resources, fleet: FleetComponents, context: InstanceContext
) -> Supervisor:
    config, view = resources.config, fleet.view
    supervisor = Supervisor(
        resources.me,
        view,
        fleet.decisions,
        PublicationContext(
            me=resources.me,
            connection=resources.connection,
            journal=resources.journal,
            outbox=fleet.outbox,
            slots=view.slots,
            registrations=fleet.registrations,
        ),
        InstanceSpecs(
            services=dict(config.services),
            images=config.box.allow_images,
            context=context,
            instances_dir=instances_dir(config.data_dir),
            cwd=config.directory,
            fence=fleet.fence.path,
            timing=config.timing,
            credentials=config.credentials,
        ),
        fleet.readiness.may_plan,
        fleet.readiness.may_make,
    )
    view.subscribe(supervisor)
    return supervisor


def _responder(resources: Resources, fleet: FleetComponents, runner: RunnerComponents) -> Responder:
    connection, host, clock = resources.connection, resources.me.host, resources.clock
    api = ApiContext(
        connection=connection,
        fleet=fleet.view,
        decisions=fleet.decisions,
        host=host,
        clock=clock,
        blocker=fleet.readiness.blocker,
    )
    root = instances_dir(resources.config.data_dir)
    logs = LogsApi(
        connection,
        host,
        resources.runtime,
        runner.supervisor.find,
        runner.supervisor.instances,
        root,
    )
    endpoints = [*ScaleApi(api).endpoints(), *AdminApi(api).endpoints(), *logs.endpoints()]
    description = Description(
        name=resources.config.nats.prefix,
        id=f"{host}-{resources.me.host_id}",
        version=VERSION,
        description=f"Scales services on Box {host} and its fleet",
        started=format_time(clock()),
        metadata={"host": host, "runtime": resources.config.box.runtime},
    )
    return Responder(resources.intake, description, endpoints)
