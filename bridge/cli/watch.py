"""What `--watch` does: query and show again, every second, until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from bridge.bus.core.connection import Connection
from bridge.cli.connect import connect, find_absence
from bridge.cli.exit_codes import DONE
from bridge.cli.flags import Link
from bridge.console import err, one_line, out
from bridge.errors import BusError
from bridge.gateway.errors import NoBoxError, ScaleError

T = TypeVar("T")

_REFRESH = 1.0  # seconds


class View(Generic[T]):
    """How a verb that lists something gets it and prints it.

    `render` is for a terminal, `print_once` for one listing and for pipes.
    """

    def __init__(
        self,
        query: Callable[[Connection], Awaitable[T]],
        render: Callable[[T], RenderableType],
        print_once: Callable[[T], None],
    ) -> None:
        self.query = query
        self.render = render
        self.print_once = print_once


async def show(link: Link | None, verb: str, view: View[T], *, watch: bool, json: bool) -> int:
    """Query and print once, or with `watch` every second until Ctrl-C; returns the exit code.

    On a terminal that can move its cursor, `watch` replaces the rendered value in place; elsewhere
    it prints each value. An error of the bus or of a Box is shown once, and the next second it
    queries again.
    """
    if not watch:
        async with connect(link, verb) as connection:
            view.print_once(await view.query(connection))
        return DONE
    in_place = out.is_terminal and not out.is_dumb_terminal and not json
    with contextlib.suppress(asyncio.CancelledError):  # Ctrl-C
        async with connect(link, verb, wait=True) as connection:
            await _refresh(connection, view, in_place=in_place)
    return DONE


async def _refresh(connection: Connection, view: View[T], *, in_place: bool) -> None:
    with contextlib.ExitStack() as stack:
        live = None
        if in_place:
            live = stack.enter_context(Live(console=out, screen=True, auto_refresh=False))
        last = ""
        while True:
            try:
                value = await view.query(connection)
            except (BusError, ScaleError) as exc:
                absence = await find_absence(connection) if isinstance(exc, NoBoxError) else None
                problem = absence or str(exc)
                if live:
                    live.update(one_line(Text(problem, style="red")), refresh=True)
                elif problem != last:
                    err.print(Text(problem, style="red"))
                last = problem
            else:
                last = ""
                if live:
                    live.update(_Screenful(view.render(value)), refresh=True)
                else:
                    view.print_once(value)
            await asyncio.sleep(_REFRESH)


class _Screenful:
    """As many lines as the screen has; the last one counts the others."""

    def __init__(self, content: RenderableType) -> None:
        self._content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = console.size.height
        # A table renders no more rows than the height has.
        lines = console.render_lines(self._content, options.update(height=height), pad=False)
        total = max(_count_lines(self._content), len(lines))
        shown = lines if total <= height else lines[: height - 1]
        for line in shown:
            yield from line
            yield Segment.line()
        if total > len(shown):
            yield Segment(f"{total - len(shown)} more")


def _count_lines(content: RenderableType) -> int:
    """The lines of a table with its header, of others with it, or of a text."""
    if isinstance(content, Group):
        return sum(map(_count_lines, content.renderables))
    return content.row_count + 1 if isinstance(content, Table) else 1
