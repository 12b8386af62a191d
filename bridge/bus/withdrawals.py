"""Withdraws routes: tells gateways for good that an instance takes no more traffic.

A withdrawal is sent at once, and again until it is stored. It waits for no other one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

from bridge.bus.core.connection import Connection
from bridge.protocol import InstanceDeregistration, encode
from bridge.tasks import task_scope

_RETRY: Final = 1.0  # seconds between attempts to store
_AT_ONCE: Final = 64  # withdrawals that are stored concurrently

Store = Callable[[str, str, bytes], Awaitable[bool]]
"""Stores the withdrawal of an instance on a subject; returns whether it is stored."""


class Withdrawals:
    """The withdrawals of one process that are not stored yet. `run` sends them."""

    def __init__(self, connection: Connection, store: Store) -> None:
        self._connection = connection
        self._store = store
        self._waiting: dict[str, InstanceDeregistration] = {}
        self._in_flight: set[str] = set()
        self._after: dict[str, list[Callable[[], None]]] = {}
        self._due = asyncio.Event()
        self._all_stored = asyncio.Event()
        self._all_stored.set()

    def __contains__(self, instance_id: str) -> bool:
        return instance_id in self._waiting

    def add(self, deregistration: InstanceDeregistration) -> None:
        """Withdraw the route of an instance: `run` sends this at once and until it is stored."""
        self._waiting[deregistration.instance_id] = deregistration
        self._all_stored.clear()
        self._due.set()

    def after(self, instance_id: str, act: Callable[[], None]) -> None:
        """Call `act` when no withdrawal of the instance waits to be stored: now, or then."""
        if instance_id in self._waiting:
            self._after.setdefault(instance_id, []).append(act)
        else:
            act()

    async def wait_stored(self) -> None:
        """Return when every withdrawal is stored."""
        await self._all_stored.wait()

    async def run(self) -> None:
        """Send withdrawals until cancelled."""
        async with task_scope() as tasks:
            while True:
                await self._connection.wait_connected()
                self._due.clear()
                room = max(0, _AT_ONCE - len(self._in_flight))
                due = [each for name, each in self._waiting.items() if name not in self._in_flight]
                for deregistration in due[:room]:
                    tasks.create_task(self.send(deregistration))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_RETRY if self._waiting else None):
                        await self._due.wait()

    async def send(self, deregistration: InstanceDeregistration) -> None:
        """Try once to store a withdrawal that was added, unless an attempt is under way."""
        instance_id = deregistration.instance_id
        if instance_id in self._in_flight:
            return
        subject = self._connection.subjects.deregister(deregistration.service, instance_id)
        self._in_flight.add(instance_id)
        try:
            if await self._store(instance_id, subject, encode(deregistration)):
                self._note_stored(instance_id)
            elif instance_id in self._waiting:  # the others come first next time
                self._waiting[instance_id] = self._waiting.pop(instance_id)
        finally:
            self._in_flight.discard(instance_id)

    def _note_stored(self, instance_id: str) -> None:
        self._waiting.pop(instance_id, None)
        if len(self._waiting) >= _AT_ONCE:
            self._due.set()  # others wait for room
        elif not self._waiting:
            self._all_stored.set()
        for act in self._after.pop(instance_id, ()):
            act()
