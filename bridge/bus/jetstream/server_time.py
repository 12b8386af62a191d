"""The server's clock, which stamps everything that is stored."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from bridge.bus.core.connection import Connection
from bridge.bus.jetstream.api import api_subject
from bridge.errors import NoReply, ProtocolError
from bridge.protocol import Time, decode

_TIMEOUT: Final = 5.0  # seconds


class _StreamInfo(Struct):
    ts: Time


async def server_time(connection: Connection) -> Time:
    """The server's time a moment ago, from its answer about the stream of events.

    Raises NoReply if there is no such stream or no answer; CutOff, NotPermitted.
    """
    subject = api_subject(connection, f"STREAM.INFO.{connection.subjects.events_stream}")
    message = await connection.request(subject, timeout=_TIMEOUT)
    try:
        return decode(_StreamInfo, message.data).ts
    except ProtocolError as exc:
        raise NoReply(subject, _TIMEOUT) from exc
