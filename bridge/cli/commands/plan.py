"""`plan`: what a scale request would do."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Final

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.table import Table
from rich.text import Text

from bridge.admin_protocol import Candidate, Fate, PlannedSlot, PlanResponse
from bridge.cli.exit_codes import DONE, FAILED, PARTLY
from bridge.cli.flags import Json, Link, ServiceName
from bridge.cli.output import DataOutput, Style
from bridge.console import err, out, plain_table
from bridge.protocol import U32_MAX
from bridge.reply_codes import ReplyCode
from bridge.subjects import check_name

_COLOURS: Final = {
    Fate.COMES: "green",
    Fate.WAITS: "red",
    Fate.FAILS: "red",
    Fate.GOES: "yellow",
    Fate.MOVES: "cyan",
    Fate.STAYS: "",
}
_WORDS: Final = {
    Fate.COMES: "to come",
    Fate.WAITS: "without room",
    Fate.FAILS: "failing",
    Fate.GOES: "to go",
    Fate.MOVES: "to be replaced",
    Fate.STAYS: "to stay",
}


async def plan(
    service: ServiceName,
    replicas: Annotated[
        int,
        Parameter(validator=Number(gte=0, lte=U32_MAX), help="The number of instances."),
    ],
    /,
    *,
    link: Link | None = None,
    json: Json = False,
    output: DataOutput = None,
) -> int:
    """Explain what a scale request would do; change nothing.

    It lists the instances that would come and go, their hosts, and the reason of
    each host that cannot take one. The exit code is 1 if the request would be
    refused, and 4 if it would be capped. For example:

        box-bridge plan web 12
    """
    from bridge.cli.connect import connect
    from bridge.cli.known_names import check_services
    from bridge.gateway.operator import Operator

    style = Style.of(output, json=json)
    check_name("service", service)
    async with connect(link, "plan") as connection:
        response = await Operator(connection).plan(service, replicas)
        if response.error and not style.for_programs:
            await check_services(connection, [service])
    if not style.print_data(response):
        _print(response)
    if response.accepted:
        return DONE
    return PARTLY if response.code == ReplyCode.CAPPED else FAILED


def _print(response: PlanResponse) -> None:
    counts = Counter(item.fate for item in response.slots)
    summary = ", ".join(f"{counts[fate]} {_WORDS[fate]}" for fate in Fate if counts[fate])
    step = f"{response.before} → {response.target}"
    out.print(f"{response.service}: {step} ({summary or 'nothing changes'})")
    if response.error:
        err.print(Text(response.error, style="red"))
    if response.stuck:
        err.print(Text(f"none is being replaced: {response.stuck}", style="red"))
    changing = [item for item in response.slots if item.fate is not Fate.STAYS]
    if changing:
        out.print(_slots_table(changing))
    out.print(_hosts_table(response.hosts, changing))
    if response.omitted:
        err.print(f"{response.omitted} slots and hosts did not fit the reply")


def _slots_table(changing: list[PlannedSlot]) -> Table:
    table = plain_table("SLOT", "", "HOST", "ID")
    for item in changing:
        fate = Text(_WORDS[item.fate], style=_COLOURS[item.fate])
        table.add_row(str(item.slot), fate, Text(item.host or "–"), Text(item.instance_id or "–"))
    return table


def _hosts_table(hosts: list[Candidate], changing: list[PlannedSlot]) -> Table:
    arrivals = Counter(item.host for item in changing if item.fate is Fate.COMES)
    table = plain_table("HOST", "ROOM NOW", "WOULD TAKE")
    table.add_column("WHY NOT", overflow="fold")
    for host in hosts:
        table.add_row(
            Text(host.name), str(host.room), str(arrivals[host.name]), Text(host.why_not or "–")
        )
    return table
