"""`services`: the wanted and the actual instances of each service, once or every second."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from bridge.admin_protocol import Service, ServicesResponse
from bridge.cli.flags import Json, Link, Watch
from bridge.cli.output import Output, Style
from bridge.console import err, out, plain_table


async def services(
    *, watch: Watch = False, link: Link | None = None, json: Json = False, output: Output = None
) -> int:
    """List the services: wanted, ready, and what is missing.

    A service that hosts offer is listed even if nobody has scaled it. For
    example:

        box-bridge services
        box-bridge services --json \\
            | jq '.services[] | select(.ready + .busy < .wanted).name'
    """
    from bridge.cli.watch import View, show
    from bridge.gateway.operator import Operator

    style = Style.of(output, json=json)
    view = View(
        lambda connection: Operator(connection).services(),
        lambda listed: _table(listed, style),
        lambda listed: _print(listed, style),
    )
    return await show(link, "services", view, watch=watch, json=style.for_programs)


def _print(listed: list[Service], style: Style) -> None:
    response = ServicesResponse(total=len(listed), services=listed)
    if style.print_data(response, lambda: [service.name for service in listed]):
        return
    if listed:
        out.print(_table(listed, style))
    else:
        err.print("no services")


def _table(listed: list[Service], style: Style) -> Table:
    table = plain_table("SERVICE", wide=style.wide)
    for name in ("WANTED", "READY", "BUSY", "OTHER"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("ROLLOUT", no_wrap=True)
    table.add_column("MISSING", overflow="fold")
    for service in listed:
        enough = service.ready + service.busy >= service.wanted
        stopped = [service.stopped] if service.stopped else []
        table.add_row(
            Text(service.name),  # as Text, because a peer's text is no markup
            str(service.wanted),
            Text(str(service.ready), style="green" if enough else "red"),
            str(service.busy),
            str(service.other),
            _rollout(service),
            Text("; ".join(stopped + service.missing) or "–"),
        )
    return table


def _rollout(service: Service) -> Text:
    if service.stopped:
        return Text(f"stopped, {service.replacing} left", style="red")
    return Text(f"{service.replacing} left" if service.replacing else "–")
