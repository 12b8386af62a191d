"""What the command line prints: tables and colours for people, JSON for programs."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

import msgspec
from rich.cells import cell_len
from rich.console import (
    COLOR_SYSTEMS,
    Console,
    ConsoleDimensions,
    ConsoleOptions,
    ConsoleRenderable,
    RenderHook,
    RenderResult,
)
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from bridge.printable import printable, printable_json
from bridge.protocol import HostStats, InstanceEvent, InstancesResponse, InstanceState, encode, now

COLOURS = {
    InstanceState.CREATING: "cyan",
    InstanceState.BOOTING: "cyan",
    InstanceState.READY: "green",
    InstanceState.BUSY: "bright_green",
    InstanceState.DRAINING: "yellow",
    InstanceState.STOPPING: "yellow",
    InstanceState.STOPPED: "bright_black",
    InstanceState.FAILED: "red",
}

_WIDE: Final = 10_000  # letters of a line without a terminal: a pipe gets every column, uncut
_FOLDED: Final = 20  # letters of a column that folds, at least, unless it is narrower
_LASTING: Final = ("ID", "STATE", "MISSING", "WHY", "WHY NOT")  # no terminal is too narrow for them
_MEASURED: Final = 500  # rows of a table that rich lays out: each takes it a millisecond
_GAP: Final = "  "  # between two columns


class Sanitized:
    """Renders content without control characters: names and messages come from peers."""

    def __init__(self, content: ConsoleRenderable) -> None:
        self._content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for text, style, control in console.render(self._content, options):
            yield Segment(text if control else printable(text, lines=True), style, control)


class _Guard(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [Sanitized(content) for content in renderables]


def one_line(value: Any) -> Any:
    """A text or a str as one printable line; anything else as it is."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Text) and not value.plain.isprintable():
        value = value.copy()
        value.plain = printable(value.plain)  # as long as before, and so its styles stay in place
    return value


class _PlainConsole(Console):
    """Prints a Text as one line, because it may be the text of a peer. A str is no markup."""

    def print(self, *objects: Any, **options: Any) -> None:
        lines = (one_line(each) if isinstance(each, Text) else each for each in objects)
        super().print(*lines, **options)


class _Out(_PlainConsole):
    @property
    def size(self) -> ConsoleDimensions:
        """The size of the terminal; rich takes any dumb one for 80 letters wide."""
        if self.is_dumb_terminal and self._width is None:
            with contextlib.suppress(OSError, ValueError):
                return ConsoleDimensions(*os.get_terminal_size(self.file.fileno()))
        return super().size

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size

    def on_broken_pipe(self) -> None:
        # rich would exit with 1; `main` ends the verb with 0.
        raise BrokenPipeError


class _Err(_PlainConsole):
    def on_broken_pipe(self) -> None:
        self.quiet = True  # the reader of stderr has left; the work goes on

    def print(self, *objects: Any, **options: Any) -> None:
        try:
            super().print(*objects, **options)
        except OSError:  # its terminal is closed, or its disk is full
            self.quiet = True


out = _Out(
    highlight=False, markup=False, soft_wrap=True, width=None if sys.stdout.isatty() else _WIDE
)
err = _Err(stderr=True, highlight=False, markup=False, soft_wrap=True)
for _console in (out, err):
    _console.push_render_hook(_Guard())


def print_json(value: msgspec.Struct | HostStats) -> None:
    """Print one line of JSON, flushed, so that the reader of a pipe gets it at once."""
    text = printable_json(encode(value).decode())
    if not text.isascii() and "utf" not in (sys.stdout.encoding or "utf-8").lower():
        text = json.dumps(json.loads(text))  # escapes what the encoding may lack
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


Part = tuple[str, str]
"""A part of a line, and its style."""


def print_line(parts: Iterable[Part]) -> None:
    """Print one line, flushed: for thousands of lines, because rich takes ten times as long.

    Control characters and colours are treated as in everything that `out` prints.
    """
    system = COLOR_SYSTEMS[out.color_system] if out.color_system and not out.no_color else None
    file = out.file
    for text, style in parts:
        shown = printable(text)
        file.write(out.get_style(style).render(shown, color_system=system) if style else shown)
    file.write("\n")
    file.flush()


def state_text(state: InstanceState) -> Text:
    """A state in its colour."""
    return Text(str(state), style=COLOURS[state])


class PlainTable(Table):
    """A table without lines. Where it is wider than the terminal, columns are left out, from the
    right; the first one, ids, states and reasons stay, and none of these is cut. Beyond 500 rows no
    cell is wrapped: a row then takes a fiftieth of the time.

    Its cells are texts. Where the height is bounded, as by a screen, the rows beyond it are not
    rendered. A `wide` table keeps every column.
    """

    wide = False

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Add a row; each cell is one line, because it may be the text of a peer."""
        super().add_row(*map(one_line, cells), **options)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        all_columns = self.columns
        try:
            self.columns, width = self._fitting(options.max_width)
            options = options.update(max_width=max(width, options.max_width))
            yield from self._render_rows(console, options)
        finally:
            self.columns = all_columns

    def _fitting(self, most: int) -> tuple[list[Column], int]:
        """The columns that fit into `most` letters, and their width. A column that folds can have
        several lines, so it needs few letters.
        """
        needs = [_width(column) for column in self.columns]
        left = list(range(len(needs)))
        for index in reversed(range(1, len(needs))):
            if self.wide or sum(needs[i] for i in left) + (len(left) - 1) * len(_GAP) <= most:
                break
            if self.columns[index].header not in _LASTING:
                left.remove(index)
        fitting = [replace(self.columns[old], _index=new) for new, old in enumerate(left)]
        return fitting, sum(needs[i] for i in left) + (len(left) - 1) * len(_GAP)

    def _render_rows(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.row_count <= _MEASURED:
            yield from super().__rich_console__(console, options)
            return
        columns = [
            _padded(
                [Text(str(column.header), self.header_style), *map(_text, column.cells)],
                options.height,
                right=column.justify == "right",
            )
            for column in self.columns
        ]
        for row in zip(*columns, strict=True):
            yield from _row(row, console)
            yield Segment.line()


_Cell = tuple[str, Text, str]
"""The blanks before a cell, the cell, and the blanks after it."""


def _width(column: Column) -> int:
    """The letters that the column needs."""
    texts = (_text(cell).plain for cell in (column.header, *column.cells))
    widest = max(len(text) if text.isascii() else cell_len(text) for text in texts)
    return widest if column.no_wrap else min(widest, _FOLDED)


def _text(cell: object) -> Text:
    return cell if isinstance(cell, Text) else Text(str(cell))


def _padded(cells: list[Text], most: int | None, *, right: bool) -> list[_Cell]:
    """The first cells of a column, `most` of them, padded to equal widths."""
    lengths = [len(it.plain) if it.plain.isascii() else cell_len(it.plain) for it in cells[:most]]
    widest = max(lengths, default=0)
    blanks = [" " * (widest - length) for length in lengths]
    padded = zip(cells, blanks, strict=False)
    return [(gap, cell, "") if right else ("", cell, gap) for cell, gap in padded]


def _row(row: Iterable[_Cell], console: Console) -> Iterator[Segment]:
    """A row of a table; adjacent texts without a style are one segment."""
    coloured, line, between = console.color_system is not None, "", ""
    for before, cell, after in row:
        line += between + before
        if coloured and (cell.style or cell.spans):
            yield Segment(line)
            yield from cell.render(console)
            line = ""
        else:
            line += cell.plain
        between = after + _GAP
    yield Segment(line)


def plain_table(*columns: str, wide: bool = False) -> Table:
    """A table without lines, the form of every verb's table; a `wide` one keeps every column."""
    table = PlainTable(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    table.wide = wide
    for name in columns:
        table.add_column(name, no_wrap=True)
    return table


def instances_table(seen: InstancesResponse, *, wide: bool = False) -> Table:
    """The table of `ps`; a `wide` one has the times of the start, too."""
    table = plain_table("ID", "SERVICE", "STATE", "HOST", "ENDPOINT", wide=wide)
    for name in ("AGE", "CPU", "MEM", "REQS", *(("CREATED", "READY") if wide else ())):
        table.add_column(name, justify="right", no_wrap=True)
    at = now()
    for info in seen.instances:
        health = info.health
        state = state_text(info.state)
        if not health.healthy:
            state.append(" unhealthy", style="red")
        table.add_row(
            Text(info.id),  # as Text, because a peer's text is no markup
            Text(info.service),
            state,
            Text(seen.hosts.get(info.id, "?")),
            Text(info.endpoint or "–"),
            age(info.created_at, at),
            "–" if health.cpu_percent is None else f"{health.cpu_percent:.0f}%",
            "–" if health.memory_bytes is None else size(health.memory_bytes),
            str(health.inflight_requests),
            *((clock(info.created_at), _clock_or_dash(info.ready_at)) if wide else ()),
        )
    return table


def notices(seen: InstancesResponse) -> list[Text]:
    """What needs attention, one line each."""
    lines = [Text(f"{service}: instances are being replaced") for service in seen.rolling]
    return lines + [
        Text(f"{service}: {text}", style="red") for service, text in seen.notices.items()
    ]


def local_time(at: datetime) -> datetime:
    """`at` on this machine's clock; as it is where that leads out of Python's years."""
    try:
        return at.astimezone()
    except OverflowError:
        return at


def clock(at: datetime) -> str:
    """`at` on this machine's clock, to the millisecond, with the date unless it is today."""
    local = local_time(at)
    date = "" if local.date() == local_time(now()).date() else f"{local:%Y-%m-%d} "
    return f"{date}{local:%H:%M:%S.%f}"[:-3]


def _clock_or_dash(at: datetime | None) -> str:
    return "–" if at is None else clock(at)


def event_parts(event: InstanceEvent) -> list[Part]:
    """An event in one line, for `print_line`."""
    parts = [(clock(event.timestamp), "bright_black"), (f"  {event.instance_id:<24} ", "")]
    if event.from_state is not event.to_state:
        parts += [_state_part(event.from_state), (" → ", "bright_black")]
    parts.append(_state_part(event.to_state))
    if event.message:
        parts.append((f"  {event.message}", "italic"))
    return parts


def _state_part(state: InstanceState) -> Part:
    return str(state), COLOURS[state]


def age(since: datetime, at: datetime) -> str:
    """The time from `since` to `at`, in its one or two largest units."""
    seconds = max(0, int((at - since).total_seconds()))
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02}s"
    if seconds < 86400:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02}m"
    return f"{seconds // 86400}d{seconds % 86400 // 3600:02}h"


def size(count: int) -> str:
    """`count` bytes in the largest binary unit."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
