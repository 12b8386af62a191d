"""`ps`: the fleet's instances, once or again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.text import Text

from bridge.cli import DONE
from bridge.cli.connect import connected
from bridge.cli.output import err, instances_table, notices, out, print_json
from bridge.errors import BusError, ScaleError
from bridge.gateway.client import ScaleClient
from bridge.protocol import InstancesResponse
from bridge.subjects import check_name

_REFRESH = 1.0  # seconds


async def run_ps(service: str, flags: Mapping[str, Any], *, watch: bool, json: bool) -> int:
    """List the instances of `service`, or of all."""
    if service:
        check_name("service", service)
    async with connected(flags, "ps") as connection:
        client = ScaleClient(connection)
        if watch:
            await _watch(client, service, json)
        else:
            _show(await client.observe(service), json)
    return DONE


async def _watch(client: ScaleClient, service: str, json: bool) -> None:
    """Show again every second; an outage is shown, and looked past."""
    if json:
        while True:
            print_json(await client.observe(service))
            await asyncio.sleep(_REFRESH)
    with Live(console=out, screen=out.is_terminal, auto_refresh=False) as live:
        try:
            while True:
                try:
                    live.update(_picture(await client.observe(service)), refresh=True)
                except (BusError, ScaleError) as exc:
                    live.update(Text(str(exc), style="red"), refresh=True)
                await asyncio.sleep(_REFRESH)
        except asyncio.CancelledError:
            return  # Ctrl-C is how a watch ends


def _show(seen: InstancesResponse, json: bool) -> None:
    if json:
        print_json(seen)
    elif seen.instances or seen.notices:
        out.print(_picture(seen))
    else:
        err.print("no instances")


def _picture(seen: InstancesResponse) -> Group:
    return Group(instances_table(seen), *notices(seen))
