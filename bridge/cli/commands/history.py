"""`history`: the requests for a service and the decisions on them."""

from __future__ import annotations

import re
from typing import Annotated, Final

from cyclopts import Parameter
from cyclopts.validators import Number
from msgspec.structs import replace
from rich.table import Table
from rich.text import Text

from bridge.admin_protocol import Entry, HistoryResponse
from bridge.cli.exit_codes import DONE
from bridge.cli.flags import Json, Link, ServiceName
from bridge.cli.output import DataOutput, Style
from bridge.console import err, local_time, out, plain_table
from bridge.subjects import check_name

_IS_KEY: Final = re.compile(r"U[A-Z2-7]{55}")
_FEW: Final = 8  # slots that are listed one by one


async def history(
    service: ServiceName,
    /,
    *,
    tail: Annotated[
        int | None,
        Parameter(name=["--tail", "-n"], validator=Number(gte=0), help="Only the last decisions."),
    ] = None,
    link: Link | None = None,
    json: Json = False,
    output: DataOutput = None,
) -> int:
    """Show the requests for a service and the decisions on them.

    A line has the time, the requested and the decided number, and the reason if
    they differ. The last 64 decisions are shown, rollout steps included, and
    before them the last 24 older requests. With the accounts of `auth init` it
    names the NATS user of each request. For example:

        box-bridge history web
        box-bridge history web --json | jq '.entries[-1]'
    """
    from bridge.cli.connect import connect
    from bridge.cli.known_names import service_names
    from bridge.gateway.operator import Operator

    style = Style.of(output, json=json)
    check_name("service", service)
    async with (
        connect(link, "history") as connection,
        service_names(connection, service, as_refused=style.for_programs),
    ):
        response = await Operator(connection).history(service)
    if tail is not None:
        response = replace(response, entries=response.entries[-tail:] if tail else [])
    if style.print_data(response):
        return DONE
    out.print(_table(response))
    if response.omitted:
        err.print(f"{response.omitted} older decisions did not fit the reply")
    return DONE


def _table(response: HistoryResponse) -> Table:
    table = plain_table("WHEN", "REQUEST", "ASKED", "TARGET", "DECIDED BY", "SLOTS")
    named = any(entry.requester for entry in response.entries)
    if named:
        table.add_column("REQUESTED BY")
    table.add_column("WHY", overflow="fold")
    for entry in response.entries:
        at = f"{local_time(entry.at):%Y-%m-%d %H:%M:%S}" if entry.at else "?"
        table.add_row(
            at,
            Text(entry.request_id or "–"),
            "–" if entry.replicas is None else str(entry.replicas),
            f"{'?' if entry.before is None else entry.before} → {entry.after}",
            Text(entry.host or "?"),
            _slots(entry),
            *([Text(_short(entry.requester))] if named else []),
            Text(_note(entry)),
        )
    return table


def _short(requester: str) -> str:
    """`requester`, or the start of it if it is a public key."""
    return f"{requester[:10]}…" if _IS_KEY.fullmatch(requester) else requester or "–"


def _slots(entry: Entry) -> Text:
    line = Text()
    for sign, slots, style in (("+", entry.added, "green"), ("-", entry.removed, "yellow")):
        if slots:
            numbers = ",".join(map(str, slots[:_FEW])) + (",…" if len(slots) > _FEW else "")
            line.append(f"{sign}{numbers} ", style=style)
    return line or Text("–")


def _note(entry: Entry) -> str:
    notes = ["its config changed"] if entry.reconfigured else []
    return "; ".join([*notes, *([entry.note] if entry.note else [])])
