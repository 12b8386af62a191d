"""`register`: any program as an instance, announced while it serves.

Gateways must let go of it before it stops serving, so it is kept in a process group of its own: a
Ctrl-C at the terminal comes here first. Under a Box it stays in the Box's group, for the Box has
withdrawn it before it signals anybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from bridge.box.runner.probes import Prober
from bridge.box.runtimes.base import Exit
from bridge.bus.core.connection import Connection
from bridge.config import child_environment, load_instance, load_nats
from bridge.console import err
from bridge.errors import ConfigError, InstanceError, ProtocolError
from bridge.instance.registration import Registration, identify, register
from bridge.protocol import InstanceRegistration
from bridge.settings import Probe
from bridge.tasks import task_scope
from bridge.validation import split_endpoint

_PATIENCE: Final = 10.0  # seconds for the first connection
_PROBE_PAUSE: Final = 0.1  # seconds between probes until the first one passes
_ENDING: Final = (signal.SIGTERM, signal.SIGINT)
_FORWARDED: Final = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT)


class RegisterOptions(Struct, frozen=True, kw_only=True):
    """What the command line asks for; times in seconds."""

    command: tuple[str, ...]
    service: str | None
    endpoint: str | None
    instance_id: str | None
    metadata: dict[str, str]
    probe: str
    probe_interval: float
    start_timeout: float
    deregister_delay: float | None
    grace: float


async def run_register(wanted: RegisterOptions, flags: Mapping[str, Any]) -> int:
    """Run the program to its end; returns its exit code."""
    if not wanted.command:
        raise ConfigError("register", "no program is given: put it after --")
    probe, box = _probe(wanted.probe, wanted.probe_interval), load_instance()
    try:
        told = identify(
            box,
            service=wanted.service,
            endpoint=wanted.endpoint,
            metadata=wanted.metadata,
            instance_id=wanted.instance_id,
        )
    except ProtocolError as exc:
        raise ConfigError("register", str(exc)) from exc
    under_box = told.instance_id == box.instance_id
    delay = wanted.deregister_delay
    if delay is None:
        delay = 0.0 if under_box else 1.0
    nats = load_nats(flags=flags)
    host, _ = split_endpoint(told.endpoint)
    async with (
        Connection.open(nats, name=told.instance_id, patience=_PATIENCE) as connection,
        Prober.open(host) as prober,
        _Child.running(wanted, told, own_group=not under_box) as child,
    ):
        if await _ready(child, prober, probe, wanted.start_timeout):
            async with register(
                service=told.service,
                endpoint=told.endpoint,
                metadata=told.metadata,
                instance_id=told.instance_id,
                connection=connection,
            ) as registration:
                whose = " by its Box" if under_box and box.registered_by_box else ""
                _say(f"{told.instance_id} is registered{whose} at {told.endpoint}")
                await _watch(child, registration, prober, probe)
                await registration.withdraw(child.reason)
            _say(f"{told.instance_id} is withdrawn: {child.reason}")
            await child.ended_within(delay)
        return await child.end(wanted.grace)


def _probe(text: str, interval: float) -> Probe:
    kind, _, path = text.partition(":")
    try:
        if kind == "http" and path:
            return Probe(http=path, interval=interval)
    except ValueError as exc:
        raise ConfigError("--probe", str(exc)) from exc
    if text != "tcp":
        raise ConfigError("--probe", f"{text!r} must be tcp or http:/path")
    return Probe(tcp=True, interval=interval)


async def _ready(child: _Child, prober: Prober, probe: Probe, timeout: float) -> bool:
    """Whether it serves; False if it has ended or is to end. Raises InstanceError when that takes
    too long.
    """
    deadline = asyncio.get_running_loop().time() + timeout
    while not await child.over_within(_PROBE_PAUSE):
        problem = await prober.probe(probe, child.port)
        if problem is None:
            return not child.over
        if asyncio.get_running_loop().time() > deadline:
            raise InstanceError(f"not ready within {timeout:g} s: {problem}")
    return False


async def _watch(child: _Child, registration: Registration, prober: Prober, probe: Probe) -> None:
    """Return when it has ended or is to end; mark it unhealthy while the probe says so."""
    async with task_scope() as tasks:
        tasks.create_task(_check(child, registration, prober, probe), name="health")
        await child.over_within(None)


async def _check(child: _Child, registration: Registration, prober: Prober, probe: Probe) -> None:
    failures, healthy = 0, True
    while True:
        await asyncio.sleep(probe.interval)
        problem = await prober.probe(probe, child.port)
        failures = failures + 1 if problem else 0
        if failures in (0, probe.failures) and healthy != (not failures):
            healthy = not failures
            registration.mark(healthy=healthy)
            how = "healthy again" if healthy else f"unhealthy: {problem}"
            _say(f"{registration.instance_id} is {how}")


def _say(text: str) -> None:
    err.print(f"box-bridge: {text}", markup=False)


class _Child:
    """The program. `over` says that it has ended, or that a signal asked for it."""

    def __init__(self, port: int, *, own_group: bool) -> None:
        self.port = port
        self._started: asyncio.subprocess.Process | None = None
        self._early: list[signal.Signals] = []
        self._own_group = own_group
        self._over = asyncio.Event()
        self._ended = asyncio.Event()
        self._asked: signal.Signals | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def running(
        cls, wanted: RegisterOptions, told: InstanceRegistration, *, own_group: bool
    ) -> AsyncIterator[_Child]:
        """The program, started; killed if it still runs when the block is over."""
        _, port = split_endpoint(told.endpoint)
        env = child_environment(
            {
                "BOX_INSTANCE_ID": told.instance_id,
                "BOX_SERVICE": told.service,
                "BOX_REGISTRATION": "box",  # it is seen to
                "PORT": str(port),
            }
        )
        child = cls(port, own_group=own_group)
        loop = asyncio.get_running_loop()
        try:
            # Before it starts: whoever sees it run may send a signal.
            for number in _ENDING:
                loop.add_signal_handler(number, child._ask, number)
            for number in _FORWARDED:
                loop.add_signal_handler(number, child._send, number)
            await child._start(wanted.command, env)
            async with task_scope() as tasks:
                tasks.create_task(child._wait(), name="child")
                yield child
        finally:
            for number in (*_ENDING, *_FORWARDED):
                loop.remove_signal_handler(number)
            if child._started is not None:
                child._send(signal.SIGKILL)
                await child._started.wait()

    async def _start(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        group = 0 if self._own_group else None
        try:
            self._started = await asyncio.create_subprocess_exec(
                *command, env=env, process_group=group
            )
        except OSError as exc:
            raise ConfigError("register", f"cannot start {command[0]}: {exc}") from exc
        for number in self._early:
            self._send(number)

    @property
    def _process(self) -> asyncio.subprocess.Process:
        assert self._started is not None, "it is started before it is handed out"
        return self._started

    @property
    def over(self) -> bool:
        return self._over.is_set()

    @property
    def reason(self) -> str:
        """Why it is over."""
        code = self._process.returncode
        if code is None:
            return self._asked.name if self._asked else ""
        return str(Exit(code=max(code, 0), signal=max(-code, 0)))

    async def over_within(self, seconds: float | None) -> bool:
        return await _set_within(self._over, seconds)

    async def ended_within(self, seconds: float) -> bool:
        return await _set_within(self._ended, seconds)

    async def end(self, grace: float) -> int:
        """Ask it to end as it was asked here, kill it after `grace` seconds; its exit code."""
        self._send(self._asked or signal.SIGTERM)
        if not await self.ended_within(grace):
            _say(f"killed: it did not end within {grace:g} s")
            self._send(signal.SIGKILL)
        await self._ended.wait()
        code = self._process.returncode
        assert code is not None
        return code if code >= 0 else 128 - code

    def _ask(self, number: signal.Signals) -> None:
        if self._asked is not None:
            self._send(signal.SIGKILL)
        self._asked = self._asked or number
        self._over.set()

    def _send(self, number: signal.Signals) -> None:
        if self._started is None:
            self._early.append(number)
            return
        if self._process.returncode is not None:
            return  # its pid may be another's by now
        with contextlib.suppress(ProcessLookupError):
            if self._own_group:
                os.killpg(self._process.pid, number)
            else:
                self._process.send_signal(number)

    async def _wait(self) -> None:
        await self._process.wait()
        self._ended.set()
        self._over.set()


async def _set_within(event: asyncio.Event, seconds: float | None) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
