"""`timeline`: the history of a service's instances, drawn from the stored events."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.text import Text

from bridge.cli.exit_codes import DONE
from bridge.cli.flags import LONGEST, Json, Link, complete_services
from bridge.cli.output import DataOutput, Style
from bridge.cli.timeline.history import History, Timeline
from bridge.cli.timeline.svg import render_svg
from bridge.cli.timeline.text import render_text
from bridge.console import err, out
from bridge.errors import ConfigError
from bridge.protocol import now
from bridge.subjects import check_name, is_name

if TYPE_CHECKING:
    from bridge.bus.core.connection import Connection
    from bridge.bus.core.message import Message

_NARROWEST = 20  # letters of a bar
_WIDEST = 120  # letters of a line


async def timeline(
    service: Annotated[
        str, Parameter(completer=complete_services, help="The service whose instances are drawn.")
    ],
    /,
    *,
    since: Annotated[
        str, Parameter(help="How far back: 10m, 1h30m, 7d, a time, or all that is stored.")
    ] = "1h",
    until: Annotated[
        str | None, Parameter(help="Where the picture ends: 14:00, 10m ago, or a time.")
    ] = None,
    svg: Annotated[
        Path | None, Parameter(help="Write the picture into this file, as SVG, to share it.")
    ] = None,
    rows: Annotated[
        int,
        Parameter(validator=Number(gte=1, lte=1000), help="The most instances to draw."),
    ] = 50,
    width: Annotated[
        int | None,
        Parameter(
            validator=Number(gte=_NARROWEST, lte=1000),
            help="Letters of a bar. Default: as the terminal has, 120 a line at most.",
        ),
    ] = None,
    timeout: Annotated[
        float,
        Parameter(
            validator=Number(gt=0, lte=LONGEST),
            help="Seconds without an event, then it gives up.",
        ),
    ] = 60.0,
    link: Link | None = None,
    json: Json = False,
    output: DataOutput = None,
) -> int:
    """Draw the history of a service's instances.

    Each instance is a bar, drawn from its stored events. The bar of a living
    instance ends at the right edge, which is now. The latest failures are listed
    below. If there are more instances than --rows, those that ended first are
    left out. For example:

        box-bridge timeline web
        box-bridge timeline web --since 2h --svg incident.svg
    """
    from bridge.cli.connect import connect, require_streams
    from bridge.cli.known_names import check_services
    from bridge.cli.since import parse_since, parse_until

    style = Style.of(output, json=json)
    begin, end = parse_since(since), None if until is None else parse_until(until)
    if isinstance(begin, int):
        raise ConfigError(
            "--since", f"{since!r} is a sequence; say how long ago, as in 10m, or all"
        )
    if isinstance(begin, timedelta):
        begin = now() - begin
    if end is not None and isinstance(begin, datetime) and begin >= end:
        raise ConfigError("--until", f"{until!r} is not after --since {since!r}")
    history = History(since=begin if isinstance(begin, datetime) else None, most=rows)
    check_name("service", service)
    async with connect(link, "timeline") as connection:
        await require_streams(connection)
        refused = await _read(connection, service, history, timeout, end)
        drawn = history.timeline(end or now())
        if not drawn.instances:
            await check_services(connection, [service])
    if refused:
        counts = ", ".join(f"{count} {reason}" for reason, count in refused.items())
        err.print(Text(f"left out: {counts}"))
    if svg is not None:
        _write(svg, render_svg(drawn, f"{service}: instances"))
    if style.print_data(drawn):
        return DONE
    if svg is None:
        _print(drawn, width)
    else:
        err.print(Text(f"{svg}: {len(drawn.instances)} instances of {service}"))
    return DONE


async def _read(
    connection: Connection, service: str, history: History, timeout: float, end: datetime | None
) -> Mapping[str, int]:
    """Add the service's stored events to `history`; returns why messages were refused, and how
    many.
    """
    from bridge.bus.jetstream import replay
    from bridge.gateway.events.filter import read_event

    metrics, subjects = connection.metrics, connection.subjects

    def take(message: Message) -> None:
        event = read_event(message, metrics)
        if event is not None and end is not None and event.timestamp > end:
            return
        if event is not None and is_name(event.instance_id):
            history.add(event)
        elif event is not None:
            metrics.refuse("events", "not a name")

    subject = subjects.events(service)
    await replay.read(connection, subjects.events_stream, subject, take, idle=timeout)
    return metrics.refusals()


def _print(drawn: Timeline, width: int | None) -> None:
    margin = max((len(one.instance_id) for one in drawn.instances), default=0)
    if width is None:
        width = max(_NARROWEST, min(out.width, _WIDEST) - margin - 2)
    for row in render_text(drawn, width=width):
        out.print(row, no_wrap=True, crop=False)
    if drawn.left_out:
        more = f"{drawn.left_out} more that ended earlier: give --rows, or a shorter --since"
        err.print(more, style="bright_black")


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise ConfigError("--svg", f"{file} cannot be written: {exc.strerror}") from exc
