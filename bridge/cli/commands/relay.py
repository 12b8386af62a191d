"""`relay`: events to an HTTP endpoint, until a signal."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.text import Text

from bridge.cli.flags import Json, Link, Logging, complete_services, configure_logs
from bridge.console import clock, err, print_json
from bridge.errors import ConfigError
from bridge.protocol import InstanceState, now

if TYPE_CHECKING:
    from bridge.bus.jetstream.start_position import Begin
    from bridge.gateway.relay.relay import Notice

_PROBLEMS: Final = ("outage", "dead_letter", "missed")


async def relay(
    *service: Annotated[
        str,
        Parameter(
            completer=complete_services, help="The services whose events are sent. Default: all."
        ),
    ],
    to: Annotated[str, Parameter(help="The http:// or https:// URL that takes the events.")],
    durable: Annotated[
        str, Parameter(help="The name under which NATS remembers which events were delivered.")
    ] = "relay",
    state: Annotated[
        list[InstanceState] | None,
        Parameter(negative="", help="Only events that go to this state; may be given again."),
    ] = None,
    since: Annotated[
        str | None,
        Parameter(
            help="Where a new durable begins: 10m ago, a time, a sequence, or all. Default: now."
        ),
    ] = None,
    header: Annotated[
        list[str] | None,
        Parameter(negative="", help="NAME=VALUE, or NAME=@FILE for a secret; may be given again."),
    ] = None,
    timeout: Annotated[
        float, Parameter(validator=Number(gt=0, lte=600), help="Seconds for each request.")
    ] = 10.0,
    max_attempts: Annotated[
        int,
        Parameter(
            validator=Number(gte=1, lte=1_000_000),
            help="Attempts before an event becomes a dead letter.",
        ),
    ] = 20,
    link: Link | None = None,
    logging: Logging | None = None,
    json: Json = False,
) -> int:
    """Send events to an HTTP endpoint, as CloudEvents.

    Each event is posted until the endpoint accepts it (2xx). The events of an
    instance keep their order, also over restarts of the relay, of NATS and of the
    endpoint. An event that the endpoint refuses (4xx), or fails to accept too
    often, is kept as a dead letter on <prefix>.dead.<durable>. Run one relay
    under each name. For example:

        box-bridge relay --to https://example.com/events
        box-bridge relay web --to https://example.com/events \\
            --durable alerts --state Failed
        box-bridge relay --to https://example.com/events \\
            --header Authorization=@/run/secrets/token
    """
    from bridge.cli.connect import connect, explained_wait, wait_for_jetstream
    from bridge.cli.known_names import check_services
    from bridge.cli.signals import wait_until_signal
    from bridge.gateway.relay.relay import Relay, RelayConfig
    from bridge.tasks import task_scope

    config = RelayConfig(
        url=to,
        durable=durable,
        services=service,
        states=tuple(state or ()),
        headers=_read_headers(header),
        timeout=timeout,
        max_attempts=max_attempts,
        start=_parse_start(since),
    )
    configure_logs(logging, json=json)
    async with (
        connect(link, "relay", wait=True) as connection,
        explained_wait(connection) as arrived,
        task_scope() as tasks,
    ):

        def report(notice: Notice) -> None:
            if notice.what == "started":
                arrived()
            (_print_json if json else _print)(notice)

        await check_services(connection, service)
        await wait_for_jetstream(connection)
        running = Relay(connection, config, report)

        def stop() -> bool:
            running.stop()
            return running.started

        return await wait_until_signal(tasks.create_task(running.run(), name="relay"), stop)


def _read_headers(items: Sequence[str] | None) -> dict[str, str]:
    """The headers of ``NAME=VALUE`` items; a value ``@FILE`` is replaced by the file's text.

    Raises ConfigError, whose message contains no value.
    """
    headers = {}
    for item in items or ():
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise ConfigError("--header", "it must be NAME=VALUE or NAME=@FILE")
        if value.startswith("@"):
            try:
                value = Path(value[1:]).expanduser().read_text(encoding="utf-8-sig").strip()
            except (OSError, UnicodeDecodeError, RuntimeError) as exc:
                raise ConfigError("--header", f"{value[1:]} cannot be read: {exc}") from exc
        headers[name] = value
    return headers


def _parse_start(since: str | None) -> Begin:
    """Where a new durable begins. Raises ConfigError."""
    from bridge.bus.jetstream.start_position import Start
    from bridge.cli.since import parse_since

    if since is None:
        return Start.NOW
    begin = parse_since(since)
    return now() - begin if isinstance(begin, timedelta) else begin


def _print(notice: Notice) -> None:
    what = notice.what.replace("_", " ")
    line = Text(f"{clock(notice.at)} ", style="bright_black")
    line.append(f"{what}: ", style="red" if notice.what in _PROBLEMS else "bold")
    err.print(line.append(notice.text, style="default"))


def _print_json(notice: Notice) -> None:
    try:
        print_json(notice)
    except BrokenPipeError:  # the reader has left; the relay goes on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
