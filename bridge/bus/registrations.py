"""Keeping registrations alive: who takes traffic, told to gateways as a lease.

A Box keeps those of its instances, an instance that registers itself its own.

A registration is repeated every `registration_renew` seconds, and at once after a reconnect,
with a time to live; a deregistration is sent until it is stored. An id that was deregistered is
never registered again.
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

_RETRY: Final = 1.0  # seconds between tries at what could not be stored
_TIMEOUT: Final = 2.0  # seconds for one registration
_AT_ONCE: Final = 64  # registrations and withdrawals under way

T = TypeVar("T")


class Registrations:
    """The registrations of one process. `run` repeats what must be repeated.

    `host` is where the instances run, "" if nobody said. `restore` is awaited when the stream is
    gone (it lives in the server's memory). `denied` is why this NATS user may not register.
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
        self._registered: dict[str, InstanceRegistration] = {}
        self._due: dict[str, float] = {}
        self._leaving: dict[str, InstanceDeregistration] = {}
        self._withdrawing: set[str] = set()
        self._gone: set[str] = set()
        self._anew = asyncio.Event()
        self._clear = asyncio.Event()
        self._clear.set()
        self.denied: NotPermitted | None = None

    async def register(self, registration: InstanceRegistration) -> None:
        """Register, now and until it is withdrawn; a failure now is made good by `run`."""
        if registration.instance_id in self._gone:
            return
        self._registered[registration.instance_id] = registration
        await self._announce(registration)

    async def deregister(self, deregistration: InstanceDeregistration) -> None:
        """Withdraw for good; a failure now is made good by `run`."""
        instance_id = deregistration.instance_id
        self.withdrawn(instance_id)
        self._leaving[instance_id] = deregistration
        self._clear.clear()
        await self._withdraw(deregistration)

    def amend(self, registration: InstanceRegistration) -> None:
        """Say something else of an instance that is registered; `run` does, at once."""
        if registration.instance_id in self._registered:
            self._registered[registration.instance_id] = registration
            self._due[registration.instance_id] = 0.0
            self._anew.set()

    def withdrawn(self, instance_id: str) -> None:
        """Somebody else has withdrawn the instance, for good: renew it no more."""
        self._registered.pop(instance_id, None)
        self._due.pop(instance_id, None)
        self._gone.add(instance_id)

    def forget(self, instance_id: str) -> None:
        """The instance has ended and its withdrawal is stored: its id never comes back."""
        self._gone.discard(instance_id)

    async def flushed(self) -> None:
        """Return when every withdrawal is stored."""
        await self._clear.wait()

    async def run(self) -> None:
        """Renew, and try again what failed, until cancelled."""
        pause = min(_RETRY, self._timing.registration_renew / 2)
        while True:
            await self._connection.wait_connected()
            await _each(self._withdraw, list(self._leaving.values()))
            now = time.monotonic()
            await _each(self._renew, [name for name, at in self._due.items() if at <= now])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._anew.wait()
            self._anew.clear()

    def renew_all(self) -> None:
        """Renew everything now: the stream may be new, and gateways may have let go."""
        self._due = dict.fromkeys(self._registered, 0.0)
        self._anew.set()

    async def _renew(self, instance_id: str) -> None:
        if registration := self._registered.get(instance_id):
            await self._announce(registration)

    async def _announce(self, registration: InstanceRegistration) -> None:
        instance_id = registration.instance_id
        subject = self._connection.subjects.register(registration.service, instance_id)
        headers = {**self._headers, MSG_TTL: str(self._timing.registration_ttl)}
        started = time.monotonic()
        stored = await self._store(subject, encode(registration), headers)
        # It may have been withdrawn meanwhile, or have something else to say.
        if self._registered.get(instance_id) is registration:
            self._due[instance_id] = (
                started + self._timing.registration_renew if stored else started
            )

    async def _withdraw(self, deregistration: InstanceDeregistration) -> None:
        instance_id = deregistration.instance_id
        if instance_id in self._withdrawing:
            return  # on its way
        subject = self._connection.subjects.deregister(deregistration.service, instance_id)
        self._withdrawing.add(instance_id)
        try:
            if await self._store(subject, encode(deregistration), self._headers):
                self._leaving.pop(instance_id, None)
                if not self._leaving:
                    self._clear.set()
        finally:
            self._withdrawing.discard(instance_id)

    async def _store(self, subject: str, data: bytes, headers: dict[str, str]) -> bool:
        """Whether it is stored; if not, `run` tries again."""
        try:
            await store(self._connection, subject, data, headers=headers, timeout=_TIMEOUT)
        except CutOff:
            return False
        except BusError as exc:
            self._connection.metrics.count("registration_retry")
            _log.warning("storing %s failed, trying again: %s", subject, exc)
            if isinstance(exc, NotPermitted):
                self.denied = exc
            if isinstance(exc, NoResponders):
                with contextlib.suppress(BusError):  # what no retry will mend ends the Box itself
                    await self._restore()
            return False
        return True


async def _each(act: Callable[[T], Coroutine[Any, Any, None]], items: Sequence[T]) -> None:
    """Act on all of `items`, many at once: one by one, with a far server leases would run out."""
    for start in range(0, len(items), _AT_ONCE):
        async with asyncio.TaskGroup() as group:
            for item in items[start : start + _AT_ONCE]:
                group.create_task(act(item))
