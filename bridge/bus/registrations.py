"""Publishes registrations as leases: which instances take traffic, for gateways.

A Box publishes those of its instances; an instance that registers itself publishes its own.

A registration is renewed every `registration_renew` seconds, and at once after a reconnect, with a
time to live. A deregistration is retried until it is stored. An id that was deregistered is never
registered again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

from bridge.bus.core.connection import Connection
from bridge.bus.jetstream.publish import store
from bridge.errors import BusError, CutOff, NoResponders, NotPermitted
from bridge.protocol import InstanceDeregistration, InstanceRegistration, encode
from bridge.settings import Timing
from bridge.subjects import BOX_HOST, MSG_TTL

_log = logging.getLogger(__name__)

_RETRY: Final = 1.0  # seconds between attempts to store
_TIMEOUT: Final = 2.0  # seconds for one registration
_AT_ONCE: Final = 64  # registrations and withdrawals that are stored concurrently

T = TypeVar("T")


class Registrations:
    """The registrations of one process. `run` renews and retries them.

    `host` is where the instances run, "" if unknown. `restore` is awaited when the stream is gone
    (it is in the server's memory). `denied` is set once this NATS user may not register.
    """

    def __init__(
        self,
        connection: Connection,
        host: str,
        timing: Timing,
        restore: Callable[[], Awaitable[object]],
    ) -> None:
        self._connection = connection
        self._restore = restore
        self._headers = {BOX_HOST: host} if host else {}
        self._timing = timing
        self._active: dict[str, InstanceRegistration] = {}
        self._due: dict[str, float] = {}
        self._withdrawals: dict[str, InstanceDeregistration] = {}
        self._in_flight: set[str] = set()
        self._retired: set[str] = set()
        self._wake = asyncio.Event()
        self._all_stored = asyncio.Event()
        self._all_stored.set()
        self.denied: NotPermitted | None = None

    async def register(self, registration: InstanceRegistration) -> None:
        """Register now, until the withdrawal. If storing fails, `run` retries it."""
        if registration.instance_id in self._retired:
            return
        self._active[registration.instance_id] = registration
        await self._publish(registration)

    async def deregister(self, deregistration: InstanceDeregistration) -> None:
        """Withdraw for good. If storing fails, `run` retries it."""
        instance_id = deregistration.instance_id
        self.retire(instance_id)
        self._withdrawals[instance_id] = deregistration
        self._all_stored.clear()
        await self._withdraw(deregistration)

    def update(self, registration: InstanceRegistration) -> None:
        """Replace the registration of a registered instance; `run` publishes it at once."""
        if registration.instance_id in self._active:
            self._active[registration.instance_id] = registration
            self._due[registration.instance_id] = 0.0
            self._wake.set()

    def retire(self, instance_id: str) -> None:
        """The instance was withdrawn for good: stop renewing it."""
        self._active.pop(instance_id, None)
        self._due.pop(instance_id, None)
        self._retired.add(instance_id)

    def forget(self, instance_id: str) -> None:
        """The instance has ended and its withdrawal is stored: its id is never used again."""
        self._retired.discard(instance_id)

    async def wait_stored(self) -> None:
        """Return when every withdrawal is stored."""
        await self._all_stored.wait()

    async def run(self) -> None:
        """Renew registrations and retry withdrawals until cancelled."""
        pause = min(_RETRY, self._timing.registration_renew / 2)
        while True:
            await self._connection.wait_connected()
            await _each(self._withdraw, list(self._withdrawals.values()))
            now = time.monotonic()
            await _each(self._renew, [name for name, at in self._due.items() if at <= now])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            self._wake.clear()

    def renew_all(self) -> None:
        """Renew everything now: the stream may be new, and gateways may have removed the routes."""
        self._due = dict.fromkeys(self._active, 0.0)
        self._wake.set()

    async def _renew(self, instance_id: str) -> None:
        if registration := self._active.get(instance_id):
            await self._publish(registration)

    async def _publish(self, registration: InstanceRegistration) -> None:
        instance_id = registration.instance_id
        subject = self._connection.subjects.register(registration.service, instance_id)
        headers = {**self._headers, MSG_TTL: str(self._timing.registration_ttl)}
        started = time.monotonic()
        stored = await self._store(subject, encode(registration), headers)
        # The instance may have been withdrawn or updated meanwhile.
        if self._active.get(instance_id) is registration:
            self._due[instance_id] = (
                started + self._timing.registration_renew if stored else started
            )

    async def _withdraw(self, deregistration: InstanceDeregistration) -> None:
        instance_id = deregistration.instance_id
        if instance_id in self._in_flight:
            return
        subject = self._connection.subjects.deregister(deregistration.service, instance_id)
        self._in_flight.add(instance_id)
        try:
            if await self._store(subject, encode(deregistration), self._headers):
                self._withdrawals.pop(instance_id, None)
                if not self._withdrawals:
                    self._all_stored.set()
        finally:
            self._in_flight.discard(instance_id)

    async def _store(self, subject: str, data: bytes, headers: dict[str, str]) -> bool:
        """Whether it is stored; if not, `run` retries it."""
        try:
            await store(self._connection, subject, data, headers=headers, timeout=_TIMEOUT)
        except CutOff:
            return False
        except BusError as exc:
            self._connection.metrics.count("registration_retry")
            _log.warning("storing %s failed, retrying: %s", subject, exc)
            if isinstance(exc, NotPermitted):
                self.denied = exc
            if isinstance(exc, NoResponders):
                with contextlib.suppress(BusError):  # the Box itself ends if no retry can help
                    await self._restore()
            return False
        return True


async def _each(act: Callable[[T], Coroutine[Any, Any, None]], items: Sequence[T]) -> None:
    """Act on all of `items`, many at once: one by one, a distant server takes too long for the
    leases.
    """
    for start in range(0, len(items), _AT_ONCE):
        async with asyncio.TaskGroup() as group:
            for item in items[start : start + _AT_ONCE]:
                group.create_task(act(item))
