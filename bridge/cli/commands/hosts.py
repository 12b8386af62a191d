"""`hosts`: the fleet's hosts, once or every second."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from bridge.admin_protocol import Host, HostsResponse
from bridge.cli.flags import Json, Link, Watch
from bridge.cli.output import Output, Style
from bridge.console import err, one_line, out, plain_table, size


async def hosts(
    *, watch: Watch = False, link: Link | None = None, json: Json = False, output: Output = None
) -> int:
    """List the hosts: their load, their room and their orders.

    A dead host is listed while it still holds slots or an order. For example:

        box-bridge hosts
        box-bridge hosts --json | jq '.hosts[] | select(.used == 0).name'
    """
    from bridge.cli.watch import View, show
    from bridge.gateway.operator import Operator

    style = Style.of(output, json=json)
    view = View(
        lambda connection: Operator(connection).hosts(),
        lambda listed: _render(listed, style),
        lambda listed: _print(listed, style),
    )
    return await show(link, "hosts", view, watch=watch, json=style.for_programs)


def _print(listed: list[Host], style: Style) -> None:
    response = HostsResponse(total=len(listed), hosts=listed)
    if style.print_data(response, lambda: [host.name for host in listed]):
        return
    if listed:
        out.print(_render(listed, style))
    else:
        err.print("no hosts")


def _render(listed: list[Host], style: Style) -> Group:
    remarks = (one_line(line) for host in listed for line in _remarks(host))
    return Group(_table(listed, style), *remarks)


def _table(listed: list[Host], style: Style) -> Table:
    table = plain_table(
        *("HOST", "STATE", "USED", "SERVICES", "LABELS", "RUNTIME", "CPUS", "MEM", "VERSION"),
        wide=style.wide,
    )
    for host in listed:
        services = " ".join(f"{name}:{count}" for name, count in host.services.items())
        labels = " ".join(f"{key}={value}" for key, value in host.labels.items())
        memory = size(host.memory_mib << 20) if host.memory_mib else "–"
        table.add_row(
            Text(host.name),  # as Text, because a peer's text is no markup
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
    """What the table does not contain, a line each."""
    lines = [Text(f"{host.name}: {notice}", style="red") for notice in host.notices]
    if host.order is not None and host.order.reason:
        lines.append(Text(f"{host.name}: {host.order.reason}"))
    lines += [
        Text(f"{host.name}: {service}: {reason}", style="red")
        for service, reason in host.stuck.items()
    ]
    return lines + [
        Text(f"{host.name}: no other host has room for {count} of {service}", style="yellow")
        for service, count in host.short.items()
    ]
