"""`routes`: who takes traffic, once or as it changes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from bridge.bus.core.connection import Connection
from bridge.cli.connect import connected
from bridge.cli.exit_codes import DONE
from bridge.console import age, err, out, print_json, state_text
from bridge.gateway.errors import NoBoxError
from bridge.gateway.routes.index import Change, Delete, Put, Resync, Route
from bridge.gateway.routes.table import RouteTable
from bridge.protocol import now

_PATIENCE: Final = 5.0  # seconds for a fleet's streams to be there


async def run_routes(
    service: str | None, flags: Mapping[str, Any], *, watch: bool, json: bool
) -> int:
    """Print the table, and with `watch` what changes until interrupted."""
    async with connected(flags, "routes") as connection, _table(connection, service) as table:
        changes = table.changes()
        if not watch:
            _show(await anext(changes), json)
            return DONE
        with contextlib.suppress(asyncio.CancelledError):  # Ctrl-C is how it ends
            async for change in changes:
                _show(change, json)
    return DONE


@contextlib.asynccontextmanager
async def _table(connection: Connection, service: str | None) -> AsyncIterator[RouteTable]:
    """The table; raises NoBoxError when there is no fleet whose table it could be."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(_PATIENCE):
                table = await stack.enter_async_context(RouteTable.open(connection, service))
        except TimeoutError as exc:
            raise NoBoxError(connection.subjects.all_registrations[0]) from exc
        yield table


def _show(change: Change, json: bool) -> None:
    if json:
        print_json(change)
    elif isinstance(change, Resync):
        if change.routes:
            out.print(_picture(change.routes))
        else:
            err.print("no routes")
    else:
        out.print(_line(change))


def _picture(routes: Iterable[Route]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    for name in ("SERVICE", "ID", "ENDPOINT", "STATE", "HOST", "AGE", "METADATA"):
        table.add_column(name, no_wrap=True)
    at = now()
    for route in sorted(routes, key=lambda route: route.key):
        table.add_row(
            Text(route.service),  # as text: what a peer says is no markup
            Text(route.instance_id),
            Text(route.endpoint),
            state_text(route.state),
            Text(route.host or "–"),
            age(route.started_at, at),
            _pairs(route),
        )
    return table


def _line(change: Put | Delete) -> Text:
    """A change in one line."""
    line = Text(f"{now().astimezone():%H:%M:%S.%f}"[:-3], style="bright_black")
    if isinstance(change, Delete):
        line.append("  - ", style="red").append(f"{change.service}  {change.instance_id}")
        return line.append(f"  {change.reason}", style="italic")
    route = change.route
    line.append("  + ", style="green").append(f"{route.service}  {route.instance_id}")
    line.append(f"  {route.endpoint}  ").append_text(state_text(route.state))
    return line.append("  ").append_text(_pairs(route)) if route.metadata else line


def _pairs(route: Route) -> Text:
    return Text(" ".join(f"{key}={value}" for key, value in sorted(route.metadata.items())))
