"""The server's clock, by which everything stored is dated."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from bridge.bus.core.connection import Connection
from bridge.errors import NoReply

_TIMEOUT: Final = 5.0  # seconds


class _Info(Struct):
    ts: Annotated[datetime, Meta(tz=True)]


async def server_time(connection: Connection) -> datetime:
    """What time it was on the server a moment ago, in an answer about the events' stream.

    Raises NoReply where there is no such stream, or nobody tells; CutOff, NotPermitted.
    """
    domain = connection.settings.domain
    stream = connection.subjects.events_stream
    subject = (
        f"$JS.{domain}.API.STREAM.INFO.{stream}" if domain else f"$JS.API.STREAM.INFO.{stream}"
    )
    message = await connection.request(subject, timeout=_TIMEOUT)
    try:
        return msgspec.json.decode(message.data, type=_Info).ts
    except msgspec.MsgspecError as exc:
        raise NoReply(subject, _TIMEOUT) from exc
