"""nats-py's JetStream calls, sent as this package sends requests.

What is asked of JetStream's API is asked again every second: while a stream has no leader nobody
hears it, and whoever waited for the answer to the first copy alone would wait on past the election.
Each of these calls may be repeated: they look, or name what they make, or take away.
"""

from __future__ import annotations

import asyncio
from typing import Final

import nats.errors
from nats.js import JetStreamContext

from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.errors import NoReply, NoResponders

_AGAIN: Final = 1.0  # seconds until an unanswered call is sent again
_PATIENCE: Final = 5.0  # seconds for a call that names no other time


def jetstream(connection: Connection) -> JetStreamContext:
    """nats-py's JetStream calls, sent over `connection` with its promises.

    They raise nats-py's errors: the caller, in `bridge.bus`, maps them.
    """
    requests = RequestAdapter(connection)
    domain = connection.settings.domain or None
    return JetStreamContext(requests, domain=domain, timeout=_PATIENCE)  # type: ignore[arg-type]


class RequestAdapter:
    """What nats-py's JetStream calls need of a client, with a Connection's promises."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.connected_server_version = connection.server_version

    async def request(self, subject: str, payload: bytes = b"", timeout: float = 5) -> Message:
        try:
            if subject.startswith("$JS.") and ".API." in subject:
                return await self._insist(subject, payload, timeout)
            return await self._connection.request(subject, payload, timeout=timeout)
        except NoResponders as exc:
            raise nats.errors.NoRespondersError from exc
        except NoReply as exc:
            raise nats.errors.TimeoutError from exc

    async def _insist(self, subject: str, payload: bytes, timeout: float) -> Message:
        """The first answer to any copy. Raises as `Connection.request` does."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        inquiry = self._connection.inquire(subject, payload)
        try:
            while True:
                inquiry.send()
                try:
                    return await inquiry.answer(min(_AGAIN, deadline - loop.time()))
                except NoReply:
                    if loop.time() >= deadline or not self._connection.connected:
                        raise
        finally:
            inquiry.drop()
