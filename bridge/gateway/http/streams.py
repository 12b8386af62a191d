"""Routes and events as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Final

from litestar.response.sse import ServerSentEventMessage
from msgspec import Struct

from bridge.bus.core.connection import Connection
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.start_position import Begin, Checkpoint, Start
from bridge.errors import ProtocolError
from bridge.gateway.events.stream import EventStream
from bridge.gateway.routes.index import Delete, Put, Resync
from bridge.gateway.routes.table import RouteTable
from bridge.protocol import InstanceEvent, encode
from bridge.subjects import check_name

_NAMES: Final = {Put: "put", Delete: "delete", Resync: "resync"}
RETRY: Final = 1000  # milliseconds until a client connects again


async def routes(table: RouteTable) -> AsyncIterator[ServerSentEventMessage]:
    """The whole table (`resync`), then each change (`put`, `delete`). A client that connects again
    gets the whole table first.
    """
    async for change in table.changes():
        yield _message(_NAMES[type(change)], change, str(change.seq))


async def events(
    connection: Connection, service: str, last: str
) -> AsyncIterator[ServerSentEventMessage]:
    """The events of `service`, or of all, after the one with the id `last`; "" means from now on.

    Raises ProtocolError for an invalid service and for an id that no event has, and BusError.
    """
    if service:
        check_name("service", service)
    start = parse_id(last) if last else await _end(connection)
    return _events(connection, service or None, start)


async def _end(connection: Connection) -> Begin:
    """The position after the last event that is stored now: later ones come, though the reader
    starts after the response.
    """
    info = await topology.stream_info(connection, connection.subjects.events_stream)
    return Start.FIRST if info is None else info.state.last_seq + 1


def parse_id(text: str) -> Checkpoint:
    """The position of the event with this id. Raises ProtocolError."""
    position, _, created = text.partition("@")
    try:
        return Checkpoint(position=int(position), created=datetime.fromisoformat(created))
    except (ValueError, OverflowError) as exc:
        raise ProtocolError("header", "Last-Event-ID", f"no event has {text[:80]!r}") from exc


async def _events(
    connection: Connection, service: str | None, start: Begin
) -> AsyncIterator[ServerSentEventMessage]:
    async with EventStream.open(connection, service, start=start) as stream:
        async for item in stream:
            place = stream.checkpoint
            name = "event" if isinstance(item, InstanceEvent) else "gap"
            yield _message(name, item, f"{place.position}@{place.created.isoformat()}")


def _message(name: str, value: Struct, identity: str) -> ServerSentEventMessage:
    return ServerSentEventMessage(data=encode(value).decode(), event=name, id=identity, retry=RETRY)
