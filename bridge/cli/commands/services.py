"""`services`: how many instances of each service are wanted and there, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from bridge.admin_protocol import Service, ServicesResponse
from bridge.cli import watch as watching
from bridge.cli.connect import connected
from bridge.cli.exit_codes import DONE
from bridge.console import err, out, plain_table, print_json
from bridge.gateway.operator import Operator


async def run_services(flags: Mapping[str, Any], *, watch: bool, json: bool) -> int:
    """List the services."""
    async with connected(flags, "services") as connection:
        operator = Operator(connection)
        if watch:
            await watching.watch(
                operator.services, services_table, lambda found: _show(found, json), json=json
            )
        else:
            _show(await operator.services(), json)
    return DONE


def _show(found: list[Service], json: bool) -> None:
    if json:
        print_json(ServicesResponse(total=len(found), services=found))
    elif found:
        out.print(services_table(found))
    else:
        err.print("no services")


def services_table(found: list[Service]) -> Table:
    """The services as `services` shows them."""
    table = plain_table("SERVICE")
    for name in ("WANTED", "READY", "BUSY", "OTHER"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("ROLLOUT", no_wrap=True)
    table.add_column("MISSING", overflow="fold")
    for item in found:
        enough = item.ready + item.busy >= item.wanted
        missing = [item.stopped] if item.stopped else []
        table.add_row(
            Text(item.name),  # as text: what a peer says is no markup
            str(item.wanted),
            Text(str(item.ready), style="green" if enough else "red"),
            str(item.busy),
            str(item.other),
            _rollout(item),
            Text("; ".join(missing + item.missing) or "–"),
        )
    return table


def _rollout(item: Service) -> Text:
    if item.stopped:
        return Text(f"stopped, {item.replacing} left", style="red")
    return Text(f"{item.replacing} left" if item.replacing else "–")
