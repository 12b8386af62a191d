"""`timeline`: what became of a service's instances, drawn from the events that are stored."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.text import Text

from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.jetstream import replay
from bridge.cli.commands.events import parse_since
from bridge.cli.connect import connected
from bridge.cli.exit_codes import DONE
from bridge.cli.timeline.history import Lives, Picture
from bridge.cli.timeline.svg import svg
from bridge.cli.timeline.text import bars
from bridge.console import err, out, print_json
from bridge.errors import ConfigError
from bridge.gateway.events.filter import read_event
from bridge.protocol import now
from bridge.subjects import is_name

_NARROW = 20  # letters of a bar, at least


async def run_timeline(
    service: str,
    flags: Mapping[str, Any],
    *,
    since: str,
    rows: int,
    width: int | None,
    file: Path | None,
    timeout: float,
    json: bool,
) -> int:
    """Draw what was stored since ``10m`` ago, say, or ``all``; into `file` if there is one."""
    ago = parse_since(since)
    if isinstance(ago, int):
        raise ConfigError(
            "--since", f"{since!r} is a sequence; say how long ago, as in 10m, or all"
        )
    lives = Lives(since=now() - ago if isinstance(ago, timedelta) else None, most=rows)
    async with connected(flags, "timeline") as connection:
        refused = await _read(connection, service, lives, timeout)
    picture = lives.picture(now())
    if refused:
        err.print(Text(f"left out: {', '.join(f'{n} {why}' for why, n in refused.items())}"))
    if file is not None:
        _write(file, svg(picture, f"{service}: instances"))
    if json:
        print_json(picture)
    elif file is None:
        _print(picture, width)
    else:
        err.print(Text(f"{file}: {len(picture.lives)} instances of {service}"))
    return DONE


async def _read(
    connection: Connection, service: str, lives: Lives, timeout: float
) -> Mapping[str, int]:
    """All that is stored of the service; what was refused of it, and how often."""
    metrics, subjects = connection.metrics, connection.subjects

    def take(message: Message) -> None:
        event = read_event(message, metrics)
        if event is not None and is_name(event.instance_id):
            lives.take(event)
        elif event is not None:
            metrics.refuse("events", "not a name")

    subject = subjects.events(service)
    await replay.read(connection, subjects.events_stream, subject, take, timeout=timeout)
    return metrics.refusals()


def _print(picture: Picture, width: int | None) -> None:
    margin = max((len(life.instance_id) for life in picture.lives), default=0)
    if width is None:
        width = max(_NARROW, min(out.width, 120) - margin - 2)
    for row in bars(picture, width=width):
        out.print(row, no_wrap=True, crop=False)
    if picture.left_out:
        more = f"{picture.left_out} more that ended earlier: give --rows, or a shorter --since"
        err.print(more, style="bright_black")


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise ConfigError("--svg", f"{file} cannot be written: {exc.strerror}") from exc
