"""The fleet's streams and buckets: created where missing, checked where they exist."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from datetime import datetime
from typing import Final

from bridge.bus.core.connection import Connection
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.api import is_final
from bridge.errors import BusError
from bridge.settings import Config

_log = logging.getLogger(__name__)

CONFIRM: Final = 60.0  # seconds that a final error must last once the streams have been right
CONFIRM_AT_START: Final = 1.0  # seconds before that: a person waits for the answer
_CHECK: Final = 4.0  # seconds between checks whether the streams are still there
_CONFIRMATIONS: Final = 3  # times that it must be met


class Streams:
    """Makes sure that the fleet's streams and buckets exist; any Box may create them.

    They may exist with settings that no Box can fix, or the server may be too old: then this Box
    must end. A server may also be started wrongly for a moment, so that error must be confirmed:
    met repeatedly, and by nothing else in between, for CONFIRM seconds.
    """

    def __init__(self, connection: Connection, config: Config) -> None:
        self._connection = connection
        self._replicas = config.nats.replicas
        self._events_max_bytes = config.nats.events_max_bytes
        self._findings: set[str] = set()
        self._lifetimes = topology.Lifetimes.of(config.timing)
        self._turn = asyncio.Lock()
        self._once_right = False
        self._final_since: float | None = None
        self._final_count = 0
        self._failed = asyncio.Event()
        self.failure: BusError | None = None

    async def watch(self) -> None:
        """Raise the final error, ServerTooOld or TopologyMismatch, once it is confirmed."""
        await self._failed.wait()
        assert self.failure is not None
        raise self.failure

    async def run_checks(self, on_change: Callable[[], None]) -> None:
        """Call `on_change` when a stream that no view follows was deleted or created again.

        A view notices the loss of its bucket by itself. Works until cancelled.
        """
        subjects = self._connection.subjects
        created: dict[str, datetime | None] = {}
        while True:
            await self._connection.wait_connected()
            for name in (subjects.events_stream, subjects.registry_stream):
                with contextlib.suppress(BusError):  # an outage: what lasts is reported elsewhere
                    info = await topology.stream_info(self._connection, name)
                    now = info.created if info else None
                    if now != created.setdefault(name, now) or now is None:
                        _log.warning("stream %s was deleted, or created again", name)
                        self._connection.metrics.count("stream_lost")
                        on_change()
                    created[name] = now
            await asyncio.sleep(_CHECK)

    async def restore(self) -> None:
        """Create what is missing. Raises BusError; `failure` is set to one that is confirmed."""
        async with self._turn:
            try:
                created = await topology.ensure(
                    self._connection,
                    replicas=self._replicas,
                    lifetimes=self._lifetimes,
                    events_max_bytes=self._events_max_bytes,
                    on_finding=self._note,
                )
            except BusError as exc:
                self._judge(exc)
                raise
            self._once_right = True
            self._final_since = None
        if created:
            _log.info("created %s", ", ".join(created))

    def _note(self, finding: str) -> None:
        """Log a finding about a stream's limits, once."""
        if finding not in self._findings:
            self._findings.add(finding)
            _log.warning("stream %s: writes wait while it is full", finding)

    def _judge(self, exc: BusError) -> None:
        """Count a final error, and set `failure` once it is confirmed."""
        if not is_final(exc):
            self._final_since = None
            return
        now = time.monotonic()
        if self._final_since is None:
            self._final_since, self._final_count = now, 0
        self._final_count += 1
        lasts = CONFIRM if self._once_right else CONFIRM_AT_START
        if self._final_count >= _CONFIRMATIONS and now - self._final_since >= lasts:
            self.failure = exc
            self._failed.set()
