"""Hearing that instances of this host were withdrawn from gateways by somebody else.

It happens when a host was held to be lost: who took its slot over, or deleted its claim, withdrew
the instance. Should the host come back and own the slot still, or again, that instance lives and no
gateway will ever route to it, for an id that was deregistered stays gone. It must be replaced.
"""

from __future__ import annotations

from collections.abc import Callable

from bridge.bus.connection import Connection
from bridge.bus.follow import Follower
from bridge.bus.message import Message
from bridge.subjects import last_token


class Withdrawals:
    """Calls `withdrawn` with each instance id that is deregistered, or was within the stream's
    memory; those of other hosts, and the own withdrawals of this one, too. `run` until cancelled.
    """

    def __init__(self, connection: Connection, withdrawn: Callable[[str], None]) -> None:
        subjects = connection.subjects
        _, subject = subjects.all_registrations
        self._withdrawn = withdrawn
        self._follower = Follower(connection, subjects.registry_stream, self, subjects=[subject])

    async def run(self) -> None:
        await self._follower.run()

    # ── the Follower's sink ──────────────────────────────────────────────────────────────

    def begin(self) -> None:
        """All of it comes again, and to say it twice does no harm."""

    def take(self, message: Message, seq: int, time_ns: int) -> None:
        self._withdrawn(last_token(message.subject))

    def complete(self, last_seq: int) -> None:
        """What came, was told as it came."""

    def lost(self) -> None:
        """What is missed meanwhile comes with the next run."""
