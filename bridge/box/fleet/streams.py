"""The fleet's streams and buckets: created where missing, checked where they exist."""

from __future__ import annotations

import asyncio
import logging

from bridge.bus.core.connection import Connection
from bridge.bus.jetstream import topology
from bridge.errors import BusError, StoreUnsuitable, TopologyMismatch
from bridge.settings import Config

_log = logging.getLogger(__name__)


class Streams:
    """Makes sure that the fleet's streams and buckets exist; any Box may create them.

    They may exist with settings that no Box can fix: then this Box must end.
    """

    def __init__(self, connection: Connection, config: Config) -> None:
        self._connection = connection
        self._replicas = config.nats.replicas
        self._lifetimes = topology.Lifetimes.of(config.timing)
        self._turn = asyncio.Lock()
        self._failure: BusError | None = None
        self._failed = asyncio.Event()

    async def watch(self) -> None:
        """Raise TopologyMismatch or StoreUnsuitable once `restore` has met one of them."""
        await self._failed.wait()
        assert self._failure is not None
        raise self._failure

    async def restore(self) -> None:
        """Create what is missing. Raises BusError; `watch` also raises what no retry can fix."""
        async with self._turn:
            try:
                created = await topology.ensure(
                    self._connection, replicas=self._replicas, lifetimes=self._lifetimes
                )
            except (TopologyMismatch, StoreUnsuitable) as exc:
                self._failure = exc
                self._failed.set()
                raise
        if created:
            _log.info("created %s", ", ".join(created))
