"""Publishes registrations as leases: which instances take traffic, for gateways.

A Box publishes those of its instances; an instance that registers itself publishes its own.

A registration is renewed every `registration_renew` seconds, and at once after a reconnect, with a
time to live. A withdrawal ends the renewals at once, and `withdrawals` sends it. An id that was
withdrawn is never registered again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

from bridge.bus.core.connection import Connection
from bridge.bus.jetstream.publish import store
from bridge.bus.withdrawals import Withdrawals
from bridge.errors import BusError, CutOff, NoResponders, NotPermitted
from bridge.log_limit import LimitedLog, cause_of
from bridge.protocol import InstanceDeregistration, InstanceRegistration, encode
from bridge.settings import Timing
from bridge.subjects import BOX_HOST, BOX_SEQ, MSG_TTL
from bridge.tasks import task_scope

_log = logging.getLogger(__name__)

_RETRY: Final = 1.0  # seconds between attempts to store
_TIMEOUT: Final = 2.0  # seconds for one registration
_AT_ONCE: Final = 64  # registrations that are stored concurrently

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
        self._sequences: dict[str, int] = {}
        self._due: dict[str, float] = {}
        self._withdrawals = Withdrawals(connection, self._store_withdrawal)
        self._retired: set[str] = set()
        self._stored: set[str] = set()
        self._renewal_due = asyncio.Event()
        self._failures = _Failures()
        self.denied: NotPermitted | None = None

    def problem(self) -> str | None:
        """Why some registrations or withdrawals are not stored; None if all are."""
        return self._failures.describe()

    async def register(self, registration: InstanceRegistration, *, seq: int = 0) -> None:
        """Register now, until the withdrawal. If storing fails, `run` retries it.

        A Box passes the Box-Seq of the instance's newest event: gateways need not wait for that.
        """
        if registration.instance_id in self._retired:
            return
        self._active[registration.instance_id] = registration
        self._sequences[registration.instance_id] = seq
        await self._publish(registration)

    def withdraw(self, deregistration: InstanceDeregistration) -> None:
        """Withdraw for good: no renewal is sent from now on, and `run` sends the deregistration at
        once and until it is stored.
        """
        self.retire(deregistration.instance_id)
        self._withdrawals.add(deregistration)

    def is_stored(self, instance_id: str) -> bool:
        """Whether a registration of the instance was stored, so that gateways can know it."""
        return instance_id in self._stored

    async def deregister(self, deregistration: InstanceDeregistration) -> None:
        """Withdraw for good; returns after the first attempt. If that fails, `run` retries it."""
        self.withdraw(deregistration)
        await self._withdrawals.send(deregistration)

    def after_withdrawal(self, instance_id: str, act: Callable[[], None]) -> None:
        """Call `act` when no withdrawal of the instance waits to be stored: now, or then."""
        self._withdrawals.after(instance_id, act)

    def update(self, registration: InstanceRegistration) -> None:
        """Replace the registration of a registered instance; `run` publishes it at once."""
        if registration.instance_id in self._active:
            self._active[registration.instance_id] = registration
            self._due[registration.instance_id] = 0.0
            self._renewal_due.set()

    def retire(self, instance_id: str) -> None:
        """The instance was withdrawn for good: stop renewing it."""
        for place in (self._active, self._due, self._sequences):
            place.pop(instance_id, None)
        self._failures.remove(instance_id)
        self._retired.add(instance_id)

    def forget(self, instance_id: str) -> None:
        """The instance has ended: its id is never used again. Its withdrawal is still retried."""
        self._retired.discard(instance_id)
        self._stored.discard(instance_id)

    async def wait_stored(self) -> None:
        """Return when every withdrawal is stored."""
        await self._withdrawals.wait_stored()

    async def run(self) -> None:
        """Renew registrations and retry withdrawals until cancelled."""
        async with task_scope() as tasks:
            tasks.create_task(self._run_renewals(), name="renewals")
            await self._withdrawals.run()  # they do not wait for a round of renewals

    async def _run_renewals(self) -> None:
        pause = min(_RETRY, self._timing.registration_renew / 2)
        while True:
            await self._connection.wait_connected()
            now = time.monotonic()
            await _each(self._renew, [name for name, at in self._due.items() if at <= now])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._renewal_due.wait()
            self._renewal_due.clear()

    def renew_all(self) -> None:
        """Renew everything now: the stream may be new, and gateways may have removed the routes."""
        self._due = dict.fromkeys(self._active, 0.0)
        self._renewal_due.set()

    async def _renew(self, instance_id: str) -> None:
        if registration := self._active.get(instance_id):
            await self._publish(registration)

    async def _publish(self, registration: InstanceRegistration) -> None:
        instance_id = registration.instance_id
        subject = self._connection.subjects.register(registration.service, instance_id)
        headers = {**self._headers, MSG_TTL: str(self._timing.registration_ttl)}
        if seq := self._sequences.get(instance_id):
            headers[BOX_SEQ] = str(seq)
        started = time.monotonic()
        stored = await self._store(instance_id, subject, encode(registration), headers)
        if stored and (instance_id in self._active or instance_id in self._retired):
            self._stored.add(instance_id)  # else it has ended meanwhile, and is forgotten
        # The instance may have been withdrawn or updated meanwhile.
        if self._active.get(instance_id) is registration:
            self._due[instance_id] = (
                started + self._timing.registration_renew if stored else started
            )

    async def _store_withdrawal(self, instance_id: str, subject: str, data: bytes) -> bool:
        return await self._store(instance_id, subject, data, self._headers)

    async def _store(
        self, instance_id: str, subject: str, data: bytes, headers: dict[str, str]
    ) -> bool:
        """Whether it is stored; if not, `run` retries it."""
        try:
            await store(self._connection, subject, data, headers=headers, timeout=_TIMEOUT)
        except CutOff:
            return False
        except BusError as exc:
            self._connection.metrics.count("registration_retry")
            if instance_id in self._active or instance_id in self._withdrawals:
                self._failures.add(instance_id, exc)
            if isinstance(exc, NotPermitted):
                self.denied = exc
            if isinstance(exc, NoResponders):
                with contextlib.suppress(BusError):  # the Box itself ends if no retry can help
                    await self._restore()
            return False
        self._failures.remove(instance_id)
        return True


class _Failures:
    """The instances whose registration or withdrawal is not stored, and why.

    A cause is logged once a minute at most, until all are stored again.
    """

    def __init__(self) -> None:
        self._causes: dict[str, tuple[object, ...]] = {}
        self._examples: dict[tuple[object, ...], str] = {}
        self._limited = LimitedLog(_log)

    def add(self, instance_id: str, exc: BusError) -> None:
        self._causes[instance_id] = cause = cause_of(exc)
        self._examples.setdefault(cause, str(exc))
        self._limited.report(cause, "registrations are not stored, retrying: %s", exc)

    def remove(self, instance_id: str) -> None:
        if self._causes.pop(instance_id, None) and not self._causes:
            for cause in self._examples:
                self._limited.end(cause)
            self._examples.clear()
            _log.info("all registrations are stored again")

    def describe(self) -> str | None:
        if not self._causes:
            return None
        [(cause, _)] = Counter(self._causes.values()).most_common(1)
        count = len(self._causes)
        noun = "registration is" if count == 1 else "registrations are"
        return f"{count} {noun} not stored: {self._examples[cause]}"


async def _each(act: Callable[[T], Coroutine[Any, Any, None]], items: Sequence[T]) -> None:
    """Act on all of `items`, many at once: one by one, a distant server takes too long for the
    leases.
    """
    for start in range(0, len(items), _AT_ONCE):
        async with asyncio.TaskGroup() as group:
            for item in items[start : start + _AT_ONCE]:
                group.create_task(act(item))
