"""An instance that registers itself: registered while it serves, withdrawn when it ends.

What it promises, from the beginning of the block:

- The registration is published, renewed as a lease, and published again at once after a reconnect.
- The instance is withdrawn within 3 s when the block ends, normally, by an error or by SIGTERM. If
  NATS cannot be reached then, the lease expires.
- After a withdrawal, by any peer, it is never registered again: ids are not reused.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Final

from msgspec.structs import replace

from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.registrations import Registrations
from bridge.config import load_instance, load_nats
from bridge.errors import ConfigError, ProtocolError
from bridge.ids import new_id
from bridge.instance.health_reporter import Reporter
from bridge.protocol import InstanceDeregistration, InstanceRegistration, now
from bridge.settings import InstanceConfig, Timing
from bridge.subjects import check_name
from bridge.tasks import task_scope
from bridge.validation import (
    HEALTHY_KEY,
    address_blocker,
    check_metadata,
    endpoint_of,
    read_withdrawal,
    split_endpoint,
)

_log = logging.getLogger(__name__)

_PATIENCE: Final = 10.0  # seconds for the first connection
_LAST: Final = 3.0  # seconds for the withdrawal
_DELAY: Final = 1.0  # seconds from the withdrawal to the end: gateways remove the route meanwhile
_MAX_REASON: Final = 1000  # letters, as in an event's message
_TERMINATED: Final = 128 + signal.SIGTERM  # the exit code by the convention of shells


class Registration:
    """The registration of this instance; made by `register`."""

    def __init__(
        self,
        connection: Connection,
        registration: InstanceRegistration,
        *,
        host: str = "",
        by_box: bool = False,
        timing: Timing | None = None,
    ) -> None:
        timing = timing or Timing()
        self._connection = connection
        self._registration = registration
        self._by_box = by_box
        self._registrations = Registrations(connection, host, timing, _nothing)
        subject = connection.subjects.health(self.service, self.instance_id)
        self._reporter = Reporter(connection, subject, timing.sample)
        self._withdrawn = False

    @property
    def instance_id(self) -> str:
        """Its id."""
        return self._registration.instance_id

    @property
    def service(self) -> str:
        """The service that it belongs to."""
        return self._registration.service

    @property
    def endpoint(self) -> str:
        """The address at which gateways reach it."""
        return self._registration.endpoint

    @property
    def withdrawn(self) -> bool:
        """Whether it was withdrawn, by itself or by its Box."""
        return self._withdrawn

    @property
    def stored(self) -> bool:
        """Whether gateways can know the registration: NATS has stored it, or its Box does that."""
        return self._by_box or self._registrations.is_stored(self.instance_id)

    def report(
        self,
        *,
        inflight: int | None = None,
        healthy: bool | None = None,
        cpu_percent: float | None = None,
        memory_bytes: int | None = None,
    ) -> None:
        """Report the health of the instance; None keeps a value. CPU is in percent of one core.

        The report replaces what the Box measures, except CPU and memory that were never given. An
        instance that reports its health must report its requests in flight, too. Raises
        ProtocolError for an invalid value.
        """
        self._reporter.update(
            inflight=inflight,
            healthy=healthy,
            cpu_percent=cpu_percent,
            memory_bytes=memory_bytes,
        )
        if healthy is not None:
            self.mark(healthy=healthy)

    def request(self) -> contextlib.AbstractAsyncContextManager[object]:
        """Count a request: ``async with registration.request(): …``."""
        return self._reporter

    def mark(self, *, healthy: bool) -> None:
        """Have gateways skip the instance, or use it again, without a report of its load."""
        metadata = {
            key: value for key, value in self._registration.metadata.items() if key != HEALTHY_KEY
        }
        if not healthy:
            metadata[HEALTHY_KEY] = "false"
        if metadata != self._registration.metadata:
            self._registration = replace(self._registration, metadata=metadata)
            self._registrations.update(self._registration)

    async def withdraw(self, reason: str = "") -> None:
        """Withdraw the instance for good. Takes 3 s at most."""
        if self._by_box:
            self._withdrawn = True  # its Box deregisters it
            return
        deregistration = InstanceDeregistration(
            instance_id=self.instance_id, service=self.service, reason=reason[:_MAX_REASON]
        )
        try:
            async with asyncio.timeout(_LAST):
                if not self._withdrawn:
                    self._withdrawn = True
                    await self._registrations.deregister(deregistration)
                await self._registrations.wait_stored()
        except TimeoutError:
            _log.warning("%s could not be withdrawn: its lease will expire", self.instance_id)

    @contextlib.asynccontextmanager
    async def renewal(self) -> AsyncIterator[None]:
        """Register, and renew until the block ends. Raises NotPermitted if this user may not."""
        subjects, registration = self._connection.subjects, self._registration
        unwatch = self._connection.watch(self._on_change)
        withdrawals = subjects.deregister(registration.service, registration.instance_id)
        listener = await self._connection.listen(withdrawals, self._take_withdrawal)
        try:
            async with task_scope() as tasks:
                tasks.create_task(self._reporter.run(), name="reporter")
                if not self._by_box:
                    tasks.create_task(self._registrations.run(), name="registrations")
                    await self._registrations.register(registration)
                    if self._registrations.denied:
                        raise self._registrations.denied
                yield
        finally:
            unwatch()
            await listener.close()

    def _on_change(self, up: bool) -> None:
        if up:
            self._registrations.renew_all()

    def _take_withdrawal(self, message: Message) -> None:
        """Its Box, or an operator, has withdrawn the instance."""
        withdrawal = read_withdrawal(message.data, self.service, self.instance_id)
        if isinstance(withdrawal, str):
            self._connection.metrics.refuse("deregister", withdrawal)
        elif not self._withdrawn:
            self._withdrawn = True
            self._registrations.retire(self.instance_id)


@contextlib.asynccontextmanager
async def register(
    *,
    service: str | None = None,
    endpoint: str | None = None,
    metadata: Mapping[str, str] | None = None,
    instance_id: str | None = None,
    connection: Connection | None = None,
    deregister_delay: float | None = None,
    timing: Timing | None = None,
) -> AsyncIterator[Registration]:
    """Register this process as an instance of `service` at `endpoint` (``host:port``)::

        async with register(service="web", endpoint="10.0.0.5:8080") as registration:
            async with registration.request():
                ...

    The environment of a process that a Box started has the defaults: the service, the id, the port,
    the host's address, NATS and the configured metadata, to which `metadata` is added. If the Box
    registers the instance (``registration = "box"``), this only reports its health. Without a Box
    the id is ``<service>-<random>``.

    Unless the program handles SIGTERM, SIGTERM withdraws the instance, cancels the block after
    `deregister_delay` seconds (1, or 0 for an instance of a Box, which waits itself) and raises
    SystemExit(143). A program that handles SIGTERM must leave the block to end.

    Raises ConfigError for a missing argument, ProtocolError for an invalid one (metadata is limited
    to 16 KiB), ConnectFailed, and NotPermitted. A later outage of NATS raises nothing: the client
    registers the instance again after it.
    """
    box = load_instance()
    identity = identify(
        box, service=service, endpoint=endpoint, metadata=metadata, instance_id=instance_id
    )
    of_box = identity.instance_id == box.instance_id
    if deregister_delay is None:
        deregister_delay = 0.0 if of_box else _DELAY
    async with contextlib.AsyncExitStack() as stack:
        if connection is None:
            connection = await stack.enter_async_context(
                Connection.open(load_nats(), name=identity.instance_id, patience=_PATIENCE)
            )
        registration = Registration(
            connection,
            identity,
            host=box.host,
            by_box=of_box and box.registered_by_box,
            timing=timing,
        )
        async with _terminable(registration, deregister_delay), registration.renewal():
            try:
                yield registration
            except BaseException as exc:
                await registration.withdraw(_reason(exc))
                raise
            await registration.withdraw("it has ended")


def identify(
    box: InstanceConfig,
    *,
    service: str | None = None,
    endpoint: str | None = None,
    metadata: Mapping[str, str] | None = None,
    instance_id: str | None = None,
) -> InstanceRegistration:
    """The registration, from the arguments and the environment that the Box gave this process.

    Raises ConfigError and ProtocolError, as `register` does.
    """
    service = check_name("service", service or box.service or _missing("service", "BOX_SERVICE"))
    of_box = service == box.service  # a process may serve other services, too
    if endpoint is None:
        if not (of_box and box.address and box.port):
            _missing("endpoint", "BOX_ADDRESS and PORT")
        endpoint = endpoint_of(box.address, box.port)
    merged = (box.metadata if of_box else {}) | dict(metadata or {})
    instance_id = instance_id or (box.instance_id if of_box else "") or new_id(service)
    return InstanceRegistration(
        instance_id=check_name("instance id", instance_id),
        service=service,
        endpoint=_reachable(endpoint),
        metadata=dict(check_metadata(merged)),
        started_at=now(),
    )


def _missing(argument: str, variable: str) -> str:
    raise ConfigError(argument, f"is missing: pass it, or run under a Box, which sets {variable}")


def _reason(exc: BaseException) -> str:
    if isinstance(exc, (asyncio.CancelledError, GeneratorExit)):
        return "it was cancelled"
    return f"{type(exc).__name__}: {exc}"


async def _nothing() -> None:
    """Only Boxes restore the streams."""


# ── SIGTERM ──────────────────────────────────────────────────────────────────────────────


@contextlib.asynccontextmanager
async def _terminable(registration: Registration, delay: float) -> AsyncIterator[None]:
    """End the block on SIGTERM: withdraw, wait, cancel; then raise SystemExit."""
    terminated = asyncio.Event()
    owner = asyncio.current_task()
    assert owner is not None

    async def end() -> None:
        await terminated.wait()
        await registration.withdraw("SIGTERM")
        await asyncio.sleep(delay)
        owner.cancel()

    with _on_sigterm(terminated.set):
        try:
            async with task_scope() as tasks:
                tasks.create_task(end(), name="sigterm")
                yield
        except asyncio.CancelledError:
            if not terminated.is_set():
                raise
    if terminated.is_set():
        raise SystemExit(_TERMINATED)


@contextlib.contextmanager
def _on_sigterm(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` in the loop on SIGTERM, unless the program handles the signal itself."""
    own = signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    if own or threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()

    def on_signal(*_: object) -> None:
        loop.call_soon_threadsafe(act)

    signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    finally:
        if (
            signal.getsignal(signal.SIGTERM) is on_signal
        ):  # else the program has set its own meanwhile
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _reachable(endpoint: str) -> str:
    """`endpoint`, if gateways can connect to it; raises ProtocolError."""
    host, _ = split_endpoint(endpoint)
    if problem := address_blocker(host):
        raise ProtocolError("InstanceRegistration", "endpoint", f"{host!r} {problem}")
    return endpoint
