"""`events`: the events of instances, stored and live."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter
from msgspec import Struct
from rich.text import Text

from bridge.cli.exit_codes import DONE
from bridge.cli.flags import Json, Link, complete_services
from bridge.cli.output import DataOutput, Style
from bridge.console import err, event_parts, out, print_line
from bridge.errors import BusError, ConfigError, NoReply
from bridge.printable import printable_json
from bridge.protocol import InstanceEvent, InstanceState, encode
from bridge.subjects import check_name

if TYPE_CHECKING:
    from bridge.bus.core.connection import Connection
    from bridge.bus.jetstream.start_position import Begin, Reset, Start
    from bridge.gateway.events.durable import DurableEvents
    from bridge.gateway.events.filter import OnRefused
    from bridge.gateway.events.stream import EventStream

_EACH_REFUSED: Final = 10  # messages that are no events, of which each is reported
_PATIENCE: Final = 2.0  # seconds for the stream to be there, with --no-follow


class _Query(Struct, frozen=True, kw_only=True):
    services: Sequence[str] | None
    states: Sequence[InstanceState] | None
    since: Start | int | timedelta | datetime | None
    until: datetime | None
    durable: str | None
    follow: bool


async def events(
    *service: Annotated[
        str, Parameter(completer=complete_services, help="Only these services. Default: all.")
    ],
    since: Annotated[
        str | None,
        Parameter(help="Begin with stored events: 10m, 1h30m, 7d ago, a time, a sequence, or all."),
    ] = None,
    until: Annotated[
        str | None,
        Parameter(help="End with the stored events of this time: 14:00, 10m ago, or a time."),
    ] = None,
    state: Annotated[
        list[InstanceState] | None,
        Parameter(negative="", help="Only events that go to this state; may be given again."),
    ] = None,
    durable: Annotated[
        str | None,
        Parameter(help="A lasting name: the next run with it continues where this one ends."),
    ] = None,
    follow: Annotated[bool, Parameter(help="Wait for new events, until Ctrl-C.")] = True,
    link: Link | None = None,
    json: Json = False,
    output: DataOutput = None,
) -> int:
    """Show the events of instances, stored and live.

    With --json each line is one InstanceEvent of the wire contract. Stderr
    reports events that were missed because this reader was too slow, or because
    the stream no longer keeps them, and messages that are no events. For
    example:

        box-bridge events web api --since 10m
        box-bridge events --since all --no-follow --state Failed
        box-bridge events --durable mailer --json | ./mail-each

    With --durable an event is acknowledged after it is printed. A new name
    begins at --since, or at the first stored event; concurrent runs with one
    name share the events. --no-follow ends after the last stored event, and so
    does --until; without --since they begin at the first.
    """
    import asyncio

    from bridge.cli.connect import connect, require_streams
    from bridge.cli.known_names import check_services
    from bridge.cli.since import parse_since, parse_until
    from bridge.gateway.events.filter import EventFilter

    style = Style.of(output, json=json)
    if until is not None and durable is not None:
        raise ConfigError("--until", "ends a look at the past: leave --durable out")
    follow = follow and until is None
    query = _Query(
        services=service or None,
        states=state,
        since=None if since is None else parse_since(since),
        until=None if until is None else parse_until(until),
        durable=durable,
        follow=follow,
    )
    EventFilter.of(query.services, query.states)  # raises before the connection is made
    if durable is not None:
        check_name("durable", durable)
    with contextlib.suppress(asyncio.CancelledError):  # Ctrl-C
        async with connect(link, "events", wait=follow) as connection:
            await check_services(connection, service)
            if not follow:
                await require_streams(connection)
            async with _open(
                connection, query, _Refusals(json=style.for_programs).report
            ) as source:
                if follow and not style.for_programs and out.is_terminal:
                    err.print("Waiting for events; Ctrl-C ends.", style="bright_black")
                await _print_all(source, style, query.until)
    return DONE


@contextlib.asynccontextmanager
async def _open(
    connection: Connection, query: _Query, on_refused: OnRefused
) -> AsyncIterator[EventStream | DurableEvents]:
    """The events; with --no-follow NoReply is raised if there is no stream."""
    import asyncio

    from bridge.cli.connect import explained_wait

    async with contextlib.AsyncExitStack() as stack:
        arrived = await stack.enter_async_context(explained_wait(connection))
        try:
            async with asyncio.timeout(None if query.follow else _PATIENCE):
                begin = await _begin(connection, query.since)
                source = await stack.enter_async_context(
                    _select(connection, query, begin, on_refused)
                )
        except TimeoutError as exc:
            raise NoReply(connection.subjects.events_stream, _PATIENCE) from exc
        arrived()
        yield source


async def _begin(
    connection: Connection, since: Start | int | timedelta | datetime | None
) -> Begin | None:
    from bridge.bus.jetstream.server_time import server_time

    if not isinstance(since, timedelta):
        return since
    try:
        return await server_time(connection) - since
    except NoReply:
        return datetime.now(UTC) - since  # there is no stream yet


def _select(
    connection: Connection, query: _Query, begin: Begin | None, on_refused: OnRefused
) -> contextlib.AbstractAsyncContextManager[EventStream | DurableEvents]:
    from bridge.bus.jetstream.start_position import Start
    from bridge.gateway.events.durable import DurableEvents
    from bridge.gateway.events.stream import EventStream

    services, states, follow = query.services, query.states, query.follow
    if query.durable is not None:
        return DurableEvents.open(
            connection,
            query.durable,
            services,
            states=states,
            start=Start.FIRST if begin is None else begin,
            max_unacked=1,
            follow=follow,
            on_refused=on_refused,
        )
    if begin is None:
        begin = Start.NOW if follow else Start.FIRST
    return EventStream.open(
        connection, services, states=states, start=begin, follow=follow, on_refused=on_refused
    )


class _Refused(Struct):
    refused: int
    subject: str
    reason: str


class _Refusals:
    """Reports messages that are no events: a line each on stderr, fewer and fewer if there are
    many: the first ten, then each that doubles the count.
    """

    def __init__(self, *, json: bool) -> None:
        self._json = json
        self._count = 0

    def report(self, subject: str, reason: str) -> None:
        """Count the message; print its subject, the reason and the count."""
        self._count += 1
        if self._count > _EACH_REFUSED and self._count & (self._count - 1):
            return
        if self._json:
            line = printable_json(encode(_Refused(self._count, subject, reason)).decode())
        else:
            line = f"skipped message {self._count} that is no event, on {subject}: {reason}"
        err.print(Text(line), soft_wrap=True)


async def _print_all(
    source: EventStream | DurableEvents, style: Style, until: datetime | None
) -> None:
    from bridge.bus.jetstream.start_position import Reset
    from bridge.gateway.events.durable import Delivery
    from bridge.gateway.events.stream import Gap

    async for item in source:
        if isinstance(item, Gap):
            err.print(f"too slow: missed stream sequences {item.first}–{item.last}")
        elif isinstance(item, Reset):
            err.print(_describe(item))
        elif isinstance(item, Delivery):
            _print(item.event, style)
            with contextlib.suppress(BusError):  # the event is delivered again, and then acked
                await item.ack()
        elif until is None or item.timestamp <= until:
            _print(item, style)


def _print(event: InstanceEvent, style: Style) -> None:
    if not style.print_data(event):
        print_line(event_parts(event))


def _describe(reset: Reset) -> str:
    if reset.reason == "trimmed":
        return f"no longer kept: stream sequences {reset.expected}–{reset.next - 1}"
    return f"the stream was created again: reading continues at its sequence {reset.next}"
