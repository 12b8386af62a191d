"""`routes`: the endpoints that take traffic, once or as they change."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter
from rich.table import Table
from rich.text import Text

from bridge.cli.exit_codes import DONE
from bridge.cli.flags import Json, Link, complete_services
from bridge.cli.output import Output, Style
from bridge.console import age, clock, err, out, plain_table, state_text
from bridge.errors import NoReply
from bridge.protocol import now
from bridge.subjects import check_name

if TYPE_CHECKING:
    from bridge.bus.core.connection import Connection
    from bridge.gateway.routes.index import Change, Delete, Put, Route
    from bridge.gateway.routes.table import RouteTable

_PATIENCE: Final = 5.0  # seconds for the fleet's streams to be there


async def routes(
    service: Annotated[
        str | None, Parameter(completer=complete_services, help="One service. Default: all.")
    ] = None,
    /,
    *,
    watch: Annotated[
        bool, Parameter(name=["--watch", "-w"], negative="", help="Continue with each change.")
    ] = False,
    link: Link | None = None,
    json: Json = False,
    output: Output = None,
) -> int:
    """List the endpoints that take traffic, or watch them.

    With --watch each change follows, with the reason of each withdrawal, until
    Ctrl-C. With --json a line is the whole table ("change": "resync"), a route
    ("put") or a withdrawal ("delete"); without --watch it is the table alone.
    For example:

        box-bridge routes web
        box-bridge routes --watch
        box-bridge routes web --json | jq -r '.routes[].endpoint'
    """
    import asyncio

    style = Style.of(output, json=json)
    try:
        await _show(link, service, style, watch=watch)
    except asyncio.CancelledError:  # Ctrl-C
        if not watch:
            raise
    return DONE


async def _show(link: Link | None, service: str | None, style: Style, *, watch: bool) -> None:
    from bridge.cli.connect import connect, require_streams
    from bridge.cli.known_names import check_services
    from bridge.gateway.routes.index import Resync

    services = [] if service is None else [check_name("service", service)]
    async with connect(link, "routes", wait=watch) as connection:
        if not watch:
            await require_streams(connection)
        async with _open(connection, service, wait=watch) as table:
            changes = table.changes()
            first = await anext(changes)
            if isinstance(first, Resync) and not first.routes:  # one with a route exists
                await check_services(connection, services)
            _print(first, style)
            if watch:
                async for change in changes:
                    _print(change, style)


@contextlib.asynccontextmanager
async def _open(
    connection: Connection, service: str | None, *, wait: bool
) -> AsyncIterator[RouteTable]:
    """The table. Raises NoReply if it is not complete within 5 s, unless `wait`."""
    import asyncio

    from bridge.cli.connect import explained_wait
    from bridge.gateway.routes.table import RouteTable

    async with contextlib.AsyncExitStack() as stack:
        arrived = await stack.enter_async_context(explained_wait(connection))
        try:
            async with asyncio.timeout(None if wait else _PATIENCE):
                table = await stack.enter_async_context(RouteTable.open(connection, service))
        except TimeoutError as exc:
            raise NoReply(connection.subjects.registry_stream, _PATIENCE) from exc
        arrived()
        yield table


def _print(change: Change, style: Style) -> None:
    from bridge.gateway.routes.index import Resync

    if style.print_data(change, lambda: _ids(change)):
        return
    if isinstance(change, Resync):
        if change.routes:
            out.print(_table(change.routes, style))
        else:
            err.print("no routes")
    else:
        out.print(_line(change))


def _ids(change: Change) -> Iterator[str]:
    from bridge.gateway.routes.index import Put, Resync

    if isinstance(change, Resync):
        yield from sorted(route.instance_id for route in change.routes)
    elif isinstance(change, Put):
        yield change.route.instance_id


def _table(listed: Iterable[Route], style: Style) -> Table:
    names = ("SERVICE", "ID", "ENDPOINT", "STATE", "HOST", "AGE", "METADATA")
    table = plain_table(*names, wide=style.wide)
    at = now()
    for route in sorted(listed, key=lambda route: route.key):
        table.add_row(
            Text(route.service),  # as Text, because a peer's text is no markup
            Text(route.instance_id),
            Text(route.endpoint),
            state_text(route.state),
            Text(route.host or "–"),
            age(route.started_at, at),
            _metadata(route),
        )
    return table


def _line(change: Put | Delete) -> Text:
    from bridge.gateway.routes.index import Delete

    line = Text(clock(now()), style="bright_black")
    if isinstance(change, Delete):
        line.append("  - ", style="red").append(f"{change.service}  {change.instance_id}")
        return line.append(f"  {change.reason}", style="italic")
    route = change.route
    line.append("  + ", style="green").append(f"{route.service}  {route.instance_id}")
    line.append(f"  {route.endpoint}  ").append_text(state_text(route.state))
    return line.append("  ").append_text(_metadata(route)) if route.metadata else line


def _metadata(route: Route) -> Text:
    return Text(" ".join(f"{key}={value}" for key, value in sorted(route.metadata.items())))
