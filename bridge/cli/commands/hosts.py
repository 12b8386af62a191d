"""`hosts`: the fleet's hosts, once or again and again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from bridge.admin_protocol import Host, HostsResponse
from bridge.cli import watch as watching
from bridge.cli.connect import connected
from bridge.cli.exit_codes import DONE
from bridge.console import err, out, plain_table, print_json, size
from bridge.gateway.operator import Operator


async def run_hosts(flags: Mapping[str, Any], *, watch: bool, json: bool) -> int:
    """List the hosts."""
    async with connected(flags, "hosts") as connection:
        operator = Operator(connection)
        if watch:
            await watching.watch(
                operator.hosts, _picture, lambda found: _show(found, json), json=json
            )
        else:
            _show(await operator.hosts(), json)
    return DONE


def _show(found: list[Host], json: bool) -> None:
    if json:
        print_json(HostsResponse(total=len(found), hosts=found))
    elif found:
        out.print(_picture(found))
    else:
        err.print("no hosts")


def _picture(found: list[Host]) -> Group:
    return Group(hosts_table(found), *(line for host in found for line in _remarks(host)))


def hosts_table(found: list[Host]) -> Table:
    """The hosts as `hosts` shows them."""
    table = plain_table("HOST", "STATE", "USED", "SERVICES", "LABELS", "RUNTIME", "CPUS", "MEM")
    table.add_column("VERSION", no_wrap=True)
    for host in found:
        services = " ".join(f"{name}:{count}" for name, count in host.services.items())
        labels = " ".join(f"{key}={value}" for key, value in host.labels.items())
        memory = size(host.memory_mib << 20) if host.memory_mib else "–"
        table.add_row(
            Text(host.name),  # as text: what a peer says is no markup
            _state(host),
            f"{host.used}/{host.max_instances}" if host.live else str(host.used),
            Text(services or "–"),
            Text(labels or "–"),
            Text(host.runtime or "–"),
            str(host.cpus or "–"),
            memory,
            Text(host.version or "–"),
        )
    return table


def _state(host: Host) -> Text:
    state = Text("live", style="green") if host.live else Text("dead", style="red")
    if not host.ready:
        state = Text("not ready", style="red")
    if host.closing:
        state = Text("closing", style="yellow")
    if host.order is not None:
        state.append(" draining" if host.order.draining and host.used else " cordoned", "yellow")
    return state


def _remarks(host: Host) -> list[Text]:
    """What else there is to say of a host, a line each."""
    lines = [Text(f"{host.name}: {notice}", style="red") for notice in host.notices]
    if host.order is not None and host.order.reason:
        lines.append(Text(f"{host.name}: {host.order.reason}"))
    lines += [
        Text(f"{host.name}: {service}: {why}", style="red") for service, why in host.stuck.items()
    ]
    return lines + [
        Text(f"{host.name}: no other host has room for {count} of {service}", style="yellow")
        for service, count in host.short.items()
    ]
