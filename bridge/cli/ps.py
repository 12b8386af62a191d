"""`ps`: the fleet's instances, once or again and again; or this host's, as its journal has them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.text import Text

from bridge.cli import DONE
from bridge.cli.connect import connected
from bridge.cli.journal import JournalView
from bridge.cli.output import err, instances_table, notices, out, print_json
from bridge.errors import (
    BusError,
    ConfigError,
    ConnectFailed,
    CutOff,
    NoBoxError,
    RequestTimeout,
    ScaleError,
)
from bridge.gateway.client import ScaleClient
from bridge.protocol import InstancesResponse
from bridge.subjects import check_name

_REFRESH = 1.0  # seconds


async def run_ps(
    service: str,
    flags: Mapping[str, Any],
    journal: JournalView,
    *,
    watch: bool,
    local: bool,
    json: bool,
) -> int:
    """List the instances of `service`, or of all; as the journal has them if nobody answers."""
    if service:
        check_name("service", service)
    if local:
        if watch:
            raise ConfigError("--local", "looks once: leave --watch out")
        journal.show(service, json=json)
        return DONE
    try:
        async with connected(flags, "ps") as connection:
            client = ScaleClient(connection)
            if watch:
                await _watch(client, service, json)
            else:
                _show(await client.observe(service), json)
    except (ConnectFailed, CutOff, NoBoxError, RequestTimeout):
        journal.show_instead(service, json=json)
        raise
    return DONE


async def _watch(client: ScaleClient, service: str, json: bool) -> None:
    """Show again every second; an outage is shown, and looked past."""
    with contextlib.ExitStack() as stack:
        live = None
        if out.is_terminal and not json:
            live = stack.enter_context(Live(console=out, screen=True, auto_refresh=False))
        stack.enter_context(contextlib.suppress(asyncio.CancelledError))  # Ctrl-C is how it ends
        while True:
            try:
                seen = await client.observe(service)
            except (BusError, ScaleError) as exc:
                trouble = Text(str(exc), style="red")
                live.update(trouble, refresh=True) if live else err.print(trouble)
            else:
                live.update(_picture(seen), refresh=True) if live else _show(seen, json)
            await asyncio.sleep(_REFRESH)


def _show(seen: InstancesResponse, json: bool) -> None:
    if json:
        print_json(seen)
    elif seen.instances or seen.notices:
        out.print(_picture(seen))
    else:
        err.print("no instances")


def _picture(seen: InstancesResponse) -> Group:
    return Group(instances_table(seen), *notices(seen))
