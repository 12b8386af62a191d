"""Synchronising this Box again after an outage of the bus, or after a loss of the store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final

from bridge.box.fleet.streams import Streams
from bridge.box.fleet.view import FleetView
from bridge.box.journal.journal import Journal
from bridge.box.journal.store import CUT_OFF
from bridge.bus.core.connection import Connection
from bridge.errors import BusError
from bridge.log_limit import LimitedLog, cause_of
from bridge.protocol import format_time

_log = logging.getLogger(__name__)

_RETRY: Final = 0.5  # seconds between attempts
_BLIND: Final = 5.0  # seconds without a complete view, though connected: a bucket may be gone


class Resync:
    """See the module. From a `request` until an attempt has succeeded, `blocker` gives a reason."""

    def __init__(
        self,
        connection: Connection,
        streams: Streams,
        fleet: FleetView,
        journal: Journal,
        clock: Callable[[], datetime],
    ) -> None:
        self._connection = connection
        self._streams = streams
        self._fleet = fleet
        self._journal = journal
        self._clock = clock
        self._needed = asyncio.Event()
        self._done = True
        self._reason = ""
        self._log = LimitedLog(_log)
        self._blind_since: float | None = None

    def request(self) -> None:
        """Stop planning at once, and have the streams checked again."""
        self._done = False
        self._needed.set()

    def blocker(self) -> str | None:
        """Why the streams may not be what this Box last saw."""
        if self._done:
            return None
        reason = f": {self._reason}" if self._reason else ""
        return f"this Box is checking its streams after an outage{reason}"

    def watch_view(self) -> None:
        """Request an attempt when the view stays incomplete; call it every half second or so."""
        now = asyncio.get_running_loop().time()
        if self._fleet.live or not self._connection.connected:
            self._blind_since = None
        elif self._blind_since is None:
            self._blind_since = now
        elif now - self._blind_since >= _BLIND:
            self._blind_since = None
            self.request()

    async def run(self, resume: Callable[[], Awaitable[None]]) -> None:
        """After each outage or loss: restore the streams, wait for the view, then `resume`."""
        unwatch = self._connection.watch(self._connection_changed)
        try:
            while True:
                await self._needed.wait()
                await self._connection.wait_connected()
                self._needed.clear()
                try:
                    await self._streams.restore()
                    async with asyncio.timeout(_BLIND):
                        await self._fleet.wait_live()
                    await resume()
                except (BusError, TimeoutError) as exc:
                    reason = " ".join(str(exc).split()) or "no complete view of the fleet"
                    self._log.report(
                        cause_of(exc), "this Box is not ready, and retries: %s", reason
                    )
                    self._reason = reason
                    await asyncio.sleep(_RETRY)
                    self._needed.set()
                else:
                    self._done = not self._needed.is_set()
                    self._reason = ""
        finally:
            unwatch()

    def _connection_changed(self, up: bool) -> None:
        self._journal.set_fact(CUT_OFF, "" if up else format_time(self._clock()))
        self.request()
