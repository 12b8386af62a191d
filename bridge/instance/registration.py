"""An instance that registers itself: announced while it serves, withdrawn however it ends.

What it promises, from the moment the block begins:

- Gateways are told where the instance serves; that is repeated as the lease that it is, and at once
  after a reconnect.
- It is withdrawn when the block ends, by itself, by an error or by SIGTERM, within 3 s; if NATS
  cannot be reached then, the lease runs out.
- Once withdrawn, by whomever, it is never announced again: ids are not reused.
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
from bridge.errors import ConfigError
from bridge.ids import new_id
from bridge.instance.health_reporter import Reporter
from bridge.protocol import InstanceDeregistration, InstanceRegistration, now
from bridge.settings import InstanceConfig, Timing
from bridge.subjects import check_name
from bridge.tasks import task_scope
from bridge.validation import (
    HEALTHY_KEY,
    check_endpoint,
    check_metadata,
    endpoint_of,
    read_withdrawal,
)

_log = logging.getLogger(__name__)

_PATIENCE: Final = 10.0  # seconds for the first connection
_LAST: Final = 3.0  # seconds for the withdrawal
_DELAY: Final = 1.0  # seconds from the withdrawal to the end: gateways let go meanwhile
_MAX_REASON: Final = 1000  # letters, as in an event's message
_TERMINATED: Final = 128 + signal.SIGTERM  # the exit code that shells give it


class Registration:
    """What `register` gives: this instance, as gateways know it."""

    def __init__(
        self,
        connection: Connection,
        registration: InstanceRegistration,
        *,
        host: str = "",
        announced: bool = False,
        timing: Timing | None = None,
    ) -> None:
        timing = timing or Timing()
        self._connection = connection
        self._told = registration
        self._announced = announced
        self._registry = Registrations(connection, host, timing, _nothing)
        subject = connection.subjects.health(self.service, self.instance_id)
        self._reporter = Reporter(connection, subject, timing.sample)
        self._withdrawn = False

    @property
    def instance_id(self) -> str:
        """The id under which it is known."""
        return self._told.instance_id

    @property
    def service(self) -> str:
        """The service that it is an instance of."""
        return self._told.service

    @property
    def endpoint(self) -> str:
        """Where gateways reach it."""
        return self._told.endpoint

    @property
    def withdrawn(self) -> bool:
        """Whether gateways were told to let go of it, by itself or by its Box."""
        return self._withdrawn

    def report(
        self,
        *,
        inflight: int | None = None,
        healthy: bool | None = None,
        cpu_percent: float | None = None,
        memory_bytes: int | None = None,
    ) -> None:
        """Say how the instance does; None leaves what was said. CPU is in percent of one core.

        It beats what its Box measures, all of it but CPU and memory that were never given: who
        reports health reports the requests in flight as well. Raises ProtocolError for a value
        that cannot be.
        """
        self._reporter.say(
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
        """Have gateways pass the instance over, or not, without a word about its load."""
        metadata = {key: value for key, value in self._told.metadata.items() if key != HEALTHY_KEY}
        if not healthy:
            metadata[HEALTHY_KEY] = "false"
        if metadata != self._told.metadata:
            self._told = replace(self._told, metadata=metadata)
            self._registry.amend(self._told)

    async def withdraw(self, reason: str = "") -> None:
        """Have gateways let go of it, for good. Takes 3 s at most."""
        if self._announced:
            self._withdrawn = True  # its Box sees to the rest
            return
        gone = InstanceDeregistration(
            instance_id=self.instance_id, service=self.service, reason=reason[:_MAX_REASON]
        )
        try:
            async with asyncio.timeout(_LAST):
                if not self._withdrawn:
                    self._withdrawn = True
                    await self._registry.deregister(gone)
                await self._registry.flushed()
        except TimeoutError:
            _log.warning("%s could not be withdrawn: its lease will run out", self.instance_id)

    @contextlib.asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Announced, and renewed, until the block ends. Raises NotPermitted where it may not be."""
        subjects, told = self._connection.subjects, self._told
        unwatch = self._connection.watch(self._on_change)
        withdrawals = subjects.deregister(told.service, told.instance_id)
        listener = await self._connection.listen(withdrawals, self._take_withdrawal)
        try:
            async with task_scope() as tasks:
                tasks.create_task(self._reporter.run(), name="reporter")
                if not self._announced:
                    tasks.create_task(self._registry.run(), name="registry")
                    await self._registry.register(told)
                    if self._registry.denied:
                        raise self._registry.denied
                yield
        finally:
            unwatch()
            await listener.close()

    def _on_change(self, up: bool) -> None:
        if up:
            self._registry.renew_all()

    def _take_withdrawal(self, message: Message) -> None:
        """Its Box, or an operator, has withdrawn it."""
        gone = read_withdrawal(message.data, self.service, self.instance_id)
        if isinstance(gone, str):
            self._connection.metrics.refuse("deregister", gone)
        elif not self._withdrawn:
            self._withdrawn = True
            self._registry.withdrawn(self.instance_id)


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
    """Be an instance of `service` at `endpoint` (``host:port``) while the block lasts::

        async with register(service="web", endpoint="10.0.0.5:8080") as registration:
            async with registration.request():
                ...

    What is left out, the Box that made this process says: its environment names the service, the
    id, the port, the host's address, NATS and the configured metadata, to which `metadata` is
    added. Where the Box registers the instance itself (``registration = "box"``), this only
    reports its health. Without a Box the id is ``<service>-<random>``.

    Where the program has no handler of SIGTERM of its own, SIGTERM withdraws the instance, cancels
    the block `deregister_delay` seconds later (1, or 0 for an instance of a Box, which has waited
    already) and then raises SystemExit(143). A program that handles it leaves the block when it is
    to end.

    Raises ConfigError for what is missing, ProtocolError for what is wrong (16 KiB of metadata at
    most), ConnectFailed, and NotPermitted. While NATS cannot be reached later on, nothing is
    raised: the registration is made good by itself.
    """
    box = load_instance()
    told = identify(
        box, service=service, endpoint=endpoint, metadata=metadata, instance_id=instance_id
    )
    of_box = told.instance_id == box.instance_id
    if deregister_delay is None:
        deregister_delay = 0.0 if of_box else _DELAY
    async with contextlib.AsyncExitStack() as stack:
        if connection is None:
            connection = await stack.enter_async_context(
                Connection.open(load_nats(), name=told.instance_id, patience=_PATIENCE)
            )
        registration = Registration(
            connection,
            told,
            host=box.host,
            announced=of_box and box.registered_by_box,
            timing=timing,
        )
        async with _terminable(registration, deregister_delay), registration.kept():
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
    """What is to be told, from the arguments and from what `box` has handed this process.

    Raises ConfigError and ProtocolError as `register` does.
    """
    service = check_name("service", service or box.service or _missing("service", "BOX_SERVICE"))
    mine = service == box.service  # a process may serve others besides
    if endpoint is None:
        if not (mine and box.address and box.port):
            _missing("endpoint", "BOX_ADDRESS and PORT")
        endpoint = endpoint_of(box.address, box.port)
    given = (box.metadata if mine else {}) | dict(metadata or {})
    instance_id = instance_id or (box.instance_id if mine else "") or new_id(service)
    return InstanceRegistration(
        instance_id=check_name("instance id", instance_id),
        service=service,
        endpoint=check_endpoint(endpoint),
        metadata=dict(check_metadata(given)),
        started_at=now(),
    )


def _missing(argument: str, variable: str) -> str:
    raise ConfigError(
        argument, f"is missing: give it, or run under a Box, which hands it over in {variable}"
    )


def _reason(exc: BaseException) -> str:
    if isinstance(exc, (asyncio.CancelledError, GeneratorExit)):
        return "it was cancelled"
    return f"{type(exc).__name__}: {exc}"


async def _nothing() -> None:
    """In place of mending the streams: that is for Boxes to do, and they do it."""


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
    """Call `act` in the loop on SIGTERM, unless the program handles that itself."""
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
        if signal.getsignal(signal.SIGTERM) is on_signal:  # else the program has its own by now
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
