"""`register`: run any program, and register it as an instance while it serves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter
from cyclopts.validators import Number

from bridge.cli.flags import LONGEST, Link, parse_pairs
from bridge.console import err
from bridge.errors import ConfigError, InstanceError, ProtocolError

if TYPE_CHECKING:
    from bridge.box.runner.probes import Prober
    from bridge.bus.core.connection import Connection
    from bridge.cli.child import Child
    from bridge.instance.registration import Registration
    from bridge.protocol import InstanceRegistration
    from bridge.settings import Probe

_PROBE_PAUSE: Final = 0.1  # seconds between probes until the first one passes
_SECONDS: Final = Number(gte=0, lte=LONGEST)


def register(
    *command: Annotated[
        str, Parameter(allow_leading_hyphen=True, help="After --: the program and its arguments.")
    ],
    service: Annotated[
        str | None, Parameter(help="The service of the instance. Default: BOX_SERVICE.")
    ] = None,
    endpoint: Annotated[
        str | None,
        Parameter(help="host:port where gateways reach it. Default: BOX_ADDRESS and PORT."),
    ] = None,
    id: Annotated[  # noqa: A002 (the flag's name)
        str | None,
        Parameter(name="--id", help="Default: BOX_INSTANCE_ID, or the service and random letters."),
    ] = None,
    metadata: Annotated[
        list[str] | None, Parameter(negative="", help="KEY=VALUE; may be given again.")
    ] = None,
    probe: Annotated[
        str, Parameter(help="How readiness is tested: tcp (it takes connections) or http:/path.")
    ] = "tcp",
    probe_interval: Annotated[
        float, Parameter(validator=Number(gt=0, lte=LONGEST), help="Seconds between probes.")
    ] = 5.0,
    start_timeout: Annotated[
        float, Parameter(validator=_SECONDS, help="Seconds until the first probe must pass.")
    ] = 60.0,
    deregister_delay: Annotated[
        float | None,
        Parameter(
            validator=_SECONDS,
            help="Seconds that it serves on once withdrawn. Default: 1, or 0 under a Box.",
        ),
    ] = None,
    grace: Annotated[
        float, Parameter(validator=_SECONDS, help="Seconds from its signal to SIGKILL.")
    ] = 10.0,
    link: Link | None = None,
) -> int:
    """Run a program and register it as an instance meanwhile.

    The program is registered when the probe passes, marked unhealthy after three
    consecutive failures of the probe, and withdrawn as soon as it ends. SIGTERM
    and Ctrl-C withdraw it first, and reach it after --deregister-delay; a second
    one kills it at once. Other signals are passed on. The exit code is that of
    the program, or 128 + n if signal n ended it. For example:

        box-bridge register --service web --endpoint 10.0.0.5:8080 \\
            --probe http:/healthz -- ./server --port 8080

    Under a Box, for a service with registration = "self":

        command = ["box-bridge", "register", "--", "./server", "{port}"]
    """
    import asyncio

    from bridge.config import load_instance
    from bridge.instance.registration import identify

    if not command:
        raise ConfigError("register", "no program is given: put it after --")
    checked, box = _parse_probe(probe, probe_interval), load_instance()
    try:
        identity = identify(
            box,
            service=service,
            endpoint=endpoint,
            metadata=parse_pairs("--metadata", metadata),
            instance_id=id,
        )
    except ProtocolError as exc:
        raise ConfigError("register", str(exc)) from exc
    under_box = identity.instance_id == box.instance_id
    if deregister_delay is None:
        deregister_delay = 0.0 if under_box else 1.0
    work = _run(
        command,
        identity,
        link or Link(),
        probe=checked,
        under_box=under_box,
        registrar=" by its Box" if under_box and box.registered_by_box else "",
        start_timeout=start_timeout,
        deregister_delay=deregister_delay,
        grace=grace,
    )
    return asyncio.run(work)  # uvloop cannot start a child in a process group of its own


async def _run(
    command: Sequence[str],
    identity: InstanceRegistration,
    link: Link,
    *,
    probe: Probe,
    under_box: bool,
    registrar: str,
    start_timeout: float,
    deregister_delay: float,
    grace: float,
) -> int:
    """Run the program to its end; returns its exit code."""
    from bridge.box.runner.probes import Prober
    from bridge.bus.core.connection import Connection
    from bridge.cli.child import Child
    from bridge.cli.connect import report_wait
    from bridge.config import load_nats
    from bridge.instance.registration import register as announce
    from bridge.validation import split_endpoint

    name = identity.instance_id
    host, _ = split_endpoint(identity.endpoint)
    async with (
        Connection.open(
            load_nats(flags=link.flags()), name=name, waiting=report_wait
        ) as connection,
        Prober.open(host) as prober,
        Child.running(command, identity, own_group=not under_box) as child,
    ):
        if await _wait_ready(child, prober, probe, start_timeout):
            async with announce(
                service=identity.service,
                endpoint=identity.endpoint,
                metadata=identity.metadata,
                instance_id=name,
                connection=connection,
            ) as registration:
                done = f"{name} is registered{registrar} at {identity.endpoint}"
                await _watch(child, registration, prober, probe, connection, done)
                await registration.withdraw(child.reason)
            _print(f"{name} is withdrawn: {child.reason}")
            await child.ended_within(deregister_delay)
        return await child.end(grace)


def _parse_probe(text: str, interval: float) -> Probe:
    from bridge.settings import Probe

    kind, _, path = text.partition(":")
    try:
        if kind == "http" and path:
            return Probe(http=path, interval=interval)
    except ValueError as exc:
        raise ConfigError("--probe", str(exc)) from exc
    if text != "tcp":
        raise ConfigError("--probe", f"{text!r} must be tcp or http:/path")
    return Probe(tcp=True, interval=interval)


async def _wait_ready(child: Child, prober: Prober, probe: Probe, timeout: float) -> bool:
    """Wait until the probe passes; False if the child is over. Raises InstanceError after `timeout`
    seconds.
    """
    import asyncio

    clock = asyncio.get_running_loop().time
    deadline = clock() + timeout
    while not await child.over_within(_PROBE_PAUSE):
        problem = await prober.probe(probe, child.port)
        if problem is None:
            return not child.over
        if clock() > deadline:
            raise InstanceError(f"not ready within {timeout:g} s: {problem}")
    return False


async def _watch(
    child: Child,
    registration: Registration,
    prober: Prober,
    probe: Probe,
    connection: Connection,
    done: str,
) -> None:
    """Return when the child is over; until then its registration follows the probe. `done` is
    printed when the registration is stored.
    """
    from bridge.tasks import task_scope

    async with task_scope() as tasks:
        tasks.create_task(_report_stored(registration, connection, done), name="stored")
        tasks.create_task(_mark_health(child, registration, prober, probe), name="health")
        await child.over_within(None)


async def _report_stored(registration: Registration, connection: Connection, done: str) -> None:
    import asyncio

    from bridge.cli.connect import explained_wait

    async with explained_wait(connection):
        while True:
            if registration.stored:
                break
            await asyncio.sleep(_PROBE_PAUSE)
    _print(done)


async def _mark_health(
    child: Child, registration: Registration, prober: Prober, probe: Probe
) -> None:
    import asyncio

    failures, healthy = 0, True
    while True:
        await asyncio.sleep(probe.interval)
        problem = await prober.probe(probe, child.port)
        failures = failures + 1 if problem else 0
        if failures in (0, probe.failures) and healthy != (not failures):
            healthy = not failures
            registration.mark(healthy=healthy)
            state = "healthy again" if healthy else f"unhealthy: {problem}"
            _print(f"{registration.instance_id} is {state}")


def _print(text: str) -> None:
    err.print(f"box-bridge: {text}")
