"""nats-py's JetStream calls, sent as this package sends requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import nats.errors

from bridge.bus.message import Message
from bridge.errors import NoReply, NoResponders

if TYPE_CHECKING:
    from nats.aio.client import ServerVersion

    from bridge.bus.connection import Connection


class Requests:
    """What nats-py's JetStream calls need of a client, with a Connection's promises."""

    def __init__(self, connection: Connection, version: ServerVersion) -> None:
        self._connection = connection
        self.connected_server_version = version

    async def request(self, subject: str, payload: bytes = b"", timeout: float = 5) -> Message:
        try:
            return await self._connection.request(subject, payload, timeout=timeout)
        except NoResponders as exc:
            raise nats.errors.NoRespondersError from exc
        except NoReply as exc:
            raise nats.errors.TimeoutError from exc
