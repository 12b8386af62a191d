"""`events`: what happens, as it happens, or what has happened since."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from msgspec import Struct

from bridge.bus.core.connection import Connection
from bridge.bus.jetstream.follower import Begin, Reset, Start
from bridge.bus.jetstream.server_time import server_time
from bridge.cli.connect import connected
from bridge.cli.exit_codes import DONE
from bridge.console import err, event_text, out, print_json
from bridge.errors import BusError, ConfigError, NoReply
from bridge.gateway.events.durable import Delivery, DurableEvents
from bridge.gateway.events.filter import EventFilter
from bridge.gateway.events.stream import EventStream, Gap
from bridge.protocol import InstanceEvent, InstanceState

_PATIENCE: Final = 2.0  # seconds for the stream to be there, where the past is asked for
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST: Final = 100 * 365 * 86400  # seconds; much more would lead before the year 1


class EventOptions(Struct, frozen=True, kw_only=True):
    """What the command line says: None where it says nothing."""

    services: list[str] | None
    states: list[InstanceState] | None
    since: str | None
    durable: str | None
    follow: bool


async def run_events(asked: EventOptions, flags: Mapping[str, Any], *, json: bool) -> int:
    """Print events until interrupted, or until all that is stored has been printed."""
    since = None if asked.since is None else parse_since(asked.since)
    EventFilter.of(asked.services, asked.states)  # refused before anybody is asked
    async with connected(flags, "events") as connection:
        with contextlib.suppress(asyncio.CancelledError):  # Ctrl-C is how it ends
            async with _opened(connection, asked, since) as events:
                if asked.follow and not json and out.is_terminal:
                    err.print("Waiting for events; Ctrl-C ends.", style="bright_black")
                await _print(events, json=json)
    return DONE


def parse_since(text: str) -> Start | int | timedelta:
    """``all``, a stream sequence (``1234``), or how long ago (``90s``, ``10m``, ``2h``, ``7d``).

    Raises ConfigError for anything else.
    """
    if text == "all":
        return Start.FIRST
    found = re.fullmatch(r"([0-9]{1,18})([smhd]?)", text)
    if found is None:
        raise ConfigError("--since", f"{text!r} is neither all, nor a sequence, nor like 10m")
    number, unit = int(found[1]), found[2]
    if not unit:
        return max(number, 1)
    if number * _UNITS[unit] > _LONGEST:
        raise ConfigError("--since", f"{text} is longer than anything is kept; say all")
    return timedelta(seconds=number * _UNITS[unit])


@contextlib.asynccontextmanager
async def _opened(
    connection: Connection, asked: EventOptions, since: Start | int | timedelta | None
) -> AsyncIterator[EventStream | DurableEvents]:
    """Raises NoReply where the past is asked for, and no stream holds any."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(None if asked.follow else _PATIENCE):
                begin = await _begin(connection, since)
                events = await stack.enter_async_context(_open(connection, asked, begin))
        except TimeoutError as exc:
            raise NoReply(connection.subjects.events_stream, _PATIENCE) from exc
        yield events


async def _begin(connection: Connection, since: Start | int | timedelta | None) -> Begin | None:
    if not isinstance(since, timedelta):
        return since
    try:
        return await server_time(connection) - since
    except NoReply:
        return datetime.now(UTC) - since  # there is no stream yet


def _open(
    connection: Connection, asked: EventOptions, begin: Begin | None
) -> contextlib.AbstractAsyncContextManager[EventStream | DurableEvents]:
    if asked.durable is not None:
        return DurableEvents.open(
            connection,
            asked.durable,
            asked.services,
            states=asked.states,
            start=Start.FIRST if begin is None else begin,
            max_unacked=1,
            follow=asked.follow,
        )
    if begin is None:
        begin = Start.NOW if asked.follow else Start.FIRST
    return EventStream.open(
        connection, asked.services, states=asked.states, start=begin, follow=asked.follow
    )


async def _print(events: EventStream | DurableEvents, *, json: bool) -> None:
    async for item in events:
        if isinstance(item, Gap):
            err.print(f"too slow: missed stream sequences {item.first}–{item.last}")
        elif isinstance(item, Reset):
            err.print(_told(item))
        elif isinstance(item, Delivery):
            _show(item.event, json=json)
            with contextlib.suppress(BusError):  # unheard, it is acknowledged when it comes again
                await item.ack()
        else:
            _show(item, json=json)


def _show(event: InstanceEvent, *, json: bool) -> None:
    if json:
        print_json(event)
    else:
        out.print(event_text(event))


def _told(reset: Reset) -> str:
    if reset.reason == "trimmed":
        return f"no longer kept: stream sequences {reset.expected}–{reset.next - 1}"
    return f"the stream was made anew: it is read from its sequence {reset.next} on"
