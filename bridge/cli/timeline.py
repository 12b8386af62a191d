"""`timeline`: what became of a service's instances, drawn from the events that are stored."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.text import Text

from bridge.bus import history
from bridge.bus.connection import Connection
from bridge.bus.follow import parse_position
from bridge.bus.message import Message
from bridge.cli import DONE
from bridge.cli.bars import bars
from bridge.cli.connect import connected
from bridge.cli.lives import Lives, Picture
from bridge.cli.output import err, out, print_json
from bridge.cli.timeline_svg import svg
from bridge.errors import ConfigError, ProtocolError
from bridge.protocol import InstanceEvent, decode, now
from bridge.subjects import is_name, last_token

_NARROW = 20  # letters of a bar, at least


async def run_timeline(
    service: str,
    flags: Mapping[str, Any],
    *,
    since: float | None,
    rows: int,
    width: int | None,
    file: Path | None,
    timeout: float,
    json: bool,
) -> int:
    """Draw the last `since` seconds (None: all that is stored), into `file` if there is one."""
    begin = None if since is None else now() - timedelta(seconds=since)
    lives = Lives(since=begin, most=rows)
    async with connected(flags, "timeline") as connection:
        reader = _Reader(connection, lives)
        stream = connection.subjects.events_stream
        subject = connection.subjects.events(service)
        await history.read(connection, stream, subject, reader.take, timeout=timeout)
        refused = connection.metrics.refusals()
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


class _Reader:
    """Takes each message once: after an outage the reading begins anew."""

    def __init__(self, connection: Connection, lives: Lives) -> None:
        self._metrics = connection.metrics
        self._lives = lives
        self._last = 0

    def take(self, message: Message) -> None:
        position = parse_position(message.reply)
        if position is None or position.stream_seq <= self._last:
            return
        self._last = position.stream_seq
        try:
            event = decode(InstanceEvent, message.data)
        except ProtocolError:
            self._metrics.refuse("events", "malformed")
            return
        if event.service != last_token(message.subject):
            self._metrics.refuse("events", "subject and payload disagree")
        elif not is_name(event.instance_id):
            self._metrics.refuse("events", "not a name")
        else:
            self._lives.take(event)


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
