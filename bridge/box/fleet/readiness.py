"""When this Box may decide and plan: connected, streams checked, nothing lost, views, lease and
journal current, and what makes its instances at work.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import datetime
from typing import Final

from bridge.box.fleet.host_lease import HostLease
from bridge.box.fleet.restore import Restorer
from bridge.box.fleet.streams import Streams
from bridge.box.fleet.view import FleetView
from bridge.box.journal.journal import Journal
from bridge.box.journal.store import CUT_OFF
from bridge.box.runtimes.base import Runtime
from bridge.bus.core.connection import Connection
from bridge.bus.registrations import Registrations
from bridge.errors import BusError
from bridge.protocol import format_time

_log = logging.getLogger(__name__)

_RETRY: Final = 0.5  # seconds between tries to be ready again
_LEASE_TICK: Final = 0.5  # seconds between looks at the leases
_BLIND: Final = 5.0  # seconds without a view of the fleet, though connected: a bucket may be gone


class Readiness:
    """See the module. `run` brings the Box back after each outage of the bus. One that has not been
    current for `patience` seconds is in trouble.
    """

    def __init__(
        self,
        connection: Connection,
        streams: Streams,
        fleet: FleetView,
        lease: HostLease,
        registry: Registrations,
        journal: Journal,
        restorer: Restorer,
        runtime: Runtime,
        patience: float,
        clock: Callable[[], datetime],
    ) -> None:
        self._connection = connection
        self._streams = streams
        self._fleet = fleet
        self._lease = lease
        self._registry = registry
        self._journal = journal
        self._restorer = restorer
        self._runtime = runtime
        self._patience = patience
        self._clock = clock
        self._current_at = time.monotonic()
        restorer.on_loss = self._recheck
        self._checked = True  # the streams, since this connection was made
        self._stopping = False
        self._changed = asyncio.Event()

    def why_not(self) -> str:
        """Why this Box must not answer requests now; empty when it may."""
        return "this Box is stopping" if self._stopping else self.why_not_current()

    def may_plan(self) -> bool:
        """Whether what this Box sees is current, so that it may act on it."""
        return not self.why_not_current()

    def trouble(self) -> str:
        """Why nothing can be made on this host, and not just for a moment; empty if it can."""
        if problem := self._journal.problem or self._runtime.problem:
            return problem
        lasting = time.monotonic() - self._current_at > self._patience
        return self.why_not_current() if lasting else ""

    def stop(self) -> None:
        """Answer no more; plans go on, for instances have to drain."""
        self._stopping = True

    async def run(self) -> None:
        """After each reconnect, and when the store turns out to have lost something: the streams
        first, then what they held, then the lease, then the registrations.
        """
        unwatch = self._connection.watch(self._on_change)
        try:
            while True:
                await self._changed.wait()
                await self._connection.wait_connected()
                self._changed.clear()
                try:
                    await self._streams.restore()
                    async with asyncio.timeout(_BLIND):
                        await self._fleet.wait_live()
                    await self._restorer.restore()
                    await self._lease.renew_now()
                except (BusError, TimeoutError) as exc:
                    _log.warning("not back yet: %s", str(exc) or "no view of the fleet")
                    await asyncio.sleep(_RETRY)
                    self._changed.set()
                else:
                    self._checked = not self._changed.is_set()
                    self._registry.renew_all()
        finally:
            unwatch()

    async def judge_leases(self) -> None:
        """Look at the leases of all hosts, and tell whether this Box is ready, for ever."""
        blind = 0.0
        while True:
            self._fleet.tick()
            blind = (
                0.0 if self._fleet.live or not self._connection.connected else blind + _LEASE_TICK
            )
            if blind >= _BLIND:
                blind = 0.0
                self._recheck()
            if self.may_plan():
                self._current_at = time.monotonic()
            self._connection.metrics.ready.set(0 if self.why_not() else 1)
            await asyncio.sleep(_LEASE_TICK)

    def _on_change(self, up: bool) -> None:
        self._journal.set_fact(CUT_OFF, "" if up else format_time(self._clock()))
        self._recheck()

    def _recheck(self) -> None:
        self._checked = False
        self._changed.set()

    def why_not_current(self) -> str:
        """Why what this Box sees may not be current; empty when it is."""
        if not self._connection.connected:
            seconds = self._connection.cut_off_for()
            return f"this Box has been cut off from NATS for {seconds:.0f} s"
        if not self._checked:
            return "this Box is checking its streams after an outage"
        if not self._fleet.live:
            return "this Box's view of the fleet is not current"
        if not self._lease.held:
            return "this Box's own lease is not current"
        return self._journal.problem or self._runtime.problem
