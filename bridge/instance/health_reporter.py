"""Reports the health of an instance to Boxes and gateways, at a cost that does not grow with load.

A report is sent when something has changed, at most once per sample (1 s), and every three samples
in any case: a report counts for ten samples. Counting a request changes a number and sends nothing
by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final, Self

from msgspec.structs import replace

from bridge.bus.core.connection import Connection
from bridge.errors import BusError, ProtocolError
from bridge.protocol import U32_MAX, InstanceHealth, encode
from bridge.validation import check_health

_REPEAT: Final = 3  # samples


class Reporter:
    """See the module. `run` sends reports from the first change on, until cancelled."""

    def __init__(self, connection: Connection, subject: str, sample: float) -> None:
        self._connection = connection
        self._subject = subject
        self._sample = sample
        self._health = InstanceHealth()
        self._inflight = 0
        self._change = asyncio.Event()

    @property
    def health(self) -> InstanceHealth:
        """The current report."""
        return replace(self._health, inflight_requests=self._inflight)

    def update(
        self,
        *,
        inflight: int | None = None,
        healthy: bool | None = None,
        cpu_percent: float | None = None,
        memory_bytes: int | None = None,
    ) -> None:
        """Change the report; None keeps a value. Raises ProtocolError for an invalid value."""
        if inflight is not None and not 0 <= inflight <= U32_MAX:
            raise ProtocolError("InstanceHealth", "inflight_requests", f"{inflight} is not a u32")
        if memory_bytes is not None and not 0 <= memory_bytes < 2**64:
            raise ProtocolError("InstanceHealth", "memory_bytes", f"{memory_bytes} is not a u64")
        now = self._health
        self._health = check_health(
            InstanceHealth(
                cpu_percent=now.cpu_percent if cpu_percent is None else cpu_percent,
                memory_bytes=now.memory_bytes if memory_bytes is None else memory_bytes,
                healthy=now.healthy if healthy is None else healthy,
            )
        )
        if inflight is not None:
            self._inflight = inflight
        self._change.set()

    async def __aenter__(self) -> Self:
        self._inflight += 1
        self._change.set()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._inflight = max(0, self._inflight - 1)
        self._change.set()

    async def run(self) -> None:
        """Report until cancelled. A report that cannot be sent is replaced by the next one."""
        await self._change.wait()
        while True:
            self._change.clear()
            with contextlib.suppress(BusError):
                self._connection.publish(self._subject, encode(self.health))
            await asyncio.sleep(self._sample)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout((_REPEAT - 1) * self._sample):
                    await self._change.wait()
