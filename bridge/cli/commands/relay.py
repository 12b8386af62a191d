"""`relay`: events to an HTTP endpoint, until a signal."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.text import Text

from bridge.bus.jetstream.follower import Begin, Start
from bridge.cli.commands.events import parse_since
from bridge.cli.connect import connected
from bridge.cli.exit_codes import DONE, INTERRUPTED
from bridge.config import load_log
from bridge.console import err, print_json
from bridge.errors import ConfigError
from bridge.gateway.relay.relay import Notice, Relay, RelayConfig
from bridge.observe import configure_logging
from bridge.protocol import now
from bridge.tasks import task_scope

_GRAVE = ("outage", "dead_letter", "missed")


async def run_relay(
    config: RelayConfig, flags: Mapping[str, Any], *, level: str | None, json: bool
) -> int:
    """Relay; the first signal stops it in order, the second one at once."""
    log = load_log(level, "json" if json else None)
    configure_logging(log.level, log.style)
    loop = asyncio.get_running_loop()
    async with connected(flags, "relay") as connection, task_scope() as tasks:
        relay = Relay(connection, config, _as_json if json else _as_text)
        work = tasks.create_task(relay.run(), name="relay")
        signals = 0

        def on_signal() -> None:
            nonlocal signals
            signals += 1
            relay.stop()
            if signals > 1 or not relay.started:
                work.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal)
        try:
            await asyncio.wait([work])
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
        return INTERRUPTED if signals > 1 and work.cancelled() else DONE


def read_headers(given: list[str] | None) -> dict[str, str]:
    """``NAME=VALUE`` each; a value ``@FILE`` is what that file holds.

    Raises ConfigError, without showing a value.
    """
    headers = {}
    for item in given or ():
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise ConfigError("--header", "it must be NAME=VALUE or NAME=@FILE")
        if value.startswith("@"):
            try:
                value = Path(value[1:]).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as exc:
                raise ConfigError("--header", f"{value[1:]} cannot be read: {exc}") from exc
        headers[name] = value
    return headers


def start_of(since: str | None) -> Begin:
    """Where a new durable begins; raises ConfigError for what is no time."""
    if since is None:
        return Start.NOW
    begin = parse_since(since)
    return now() - begin if isinstance(begin, timedelta) else begin


def _as_text(notice: Notice) -> None:
    what = notice.what.replace("_", " ")
    line = Text(f"{notice.at.astimezone():%H:%M:%S} ", style="bright_black")
    line.append(f"{what}: ", style="red" if notice.what in _GRAVE else "bold")
    err.print(line.append(notice.text, style="default"))


def _as_json(notice: Notice) -> None:
    try:
        print_json(notice)
    except BrokenPipeError:  # nobody reads what is said; the work goes on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
