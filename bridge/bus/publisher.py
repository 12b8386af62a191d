"""Publishing what must not be lost: each message again and again, until it is stored.

A repeat is harmless because every message carries a ``Nats-Msg-Id``: the stream keeps the first
and acknowledges the others as duplicates. Order is the caller's: who awaits one publish before
the next has its messages stored in that order.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import stamina

from bridge.bus.connection import Connection
from bridge.bus.store import Stored, store
from bridge.errors import BusError, CutOff, NoResponders
from bridge.subjects import MSG_ID

_log = logging.getLogger(__name__)

_IN_FLIGHT: Final = 64  # acknowledgements awaited at once; the server's fsync is the bottleneck
_TIMEOUT: Final = 5.0  # seconds until a silent publish is repeated


class Publisher:
    """See the module. `restore` is awaited when no stream takes a subject any more."""

    def __init__(self, connection: Connection, restore: Callable[[], Awaitable[object]]) -> None:
        self._connection = connection
        self._restore = restore
        self._slots = asyncio.Semaphore(_IN_FLIGHT)

    async def publish(self, subject: str, data: bytes, headers: Mapping[str, str]) -> Stored:
        """Return when the message is stored, however long that takes.

        `headers` must hold a ``Nats-Msg-Id``. Only cancellation ends it early; whether the
        message was stored is then unknown.
        """
        assert MSG_ID in headers, "without an id a repeat would be stored twice"
        async for attempt in stamina.retry_context(
            on=BusError, attempts=None, timeout=None, wait_initial=0.1, wait_max=5.0
        ):
            with attempt:
                return await self._once(subject, data, headers)
        raise AssertionError("unreachable: attempts are not bounded")

    async def _once(self, subject: str, data: bytes, headers: Mapping[str, str]) -> Stored:
        await self._connection.wait_connected()
        try:
            async with self._slots:
                return await store(
                    self._connection, subject, data, headers=headers, timeout=_TIMEOUT
                )
        except NoResponders:
            await self._restore()
            raise
        except CutOff:
            raise
        except BusError as exc:
            self._connection.metrics.count("publish_retry")
            _log.warning("storing %s failed, trying again: %s", subject, exc)
            raise
