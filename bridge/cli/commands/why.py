"""`history` and `plan`: why things are as they are, and what a request would do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from bridge.admin_protocol import Candidate, Entry, Fate, HistoryResponse, PlannedSlot, PlanResponse
from bridge.cli.connect import connected
from bridge.cli.exit_codes import DONE, FAILED
from bridge.console import err, out, plain_table, print_json
from bridge.gateway.operator import Operator
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
_FEW: Final = 8  # slots that are listed one by one


async def run_history(service: str, flags: Mapping[str, Any], *, json: bool) -> int:
    """Show the decisions on a service."""
    check_name("service", service)
    async with connected(flags, "history") as connection:
        found = await Operator(connection).history(service)
    if json:
        print_json(found)
        return DONE
    out.print(_history_table(found))
    if found.omitted:
        err.print(f"{found.omitted} older decisions did not fit the reply")
    return DONE


def _history_table(found: HistoryResponse) -> Table:
    table = plain_table("WHEN", "REQUEST", "ASKED", "TARGET", "DECIDED BY", "SLOTS")
    table.add_column("WHY", overflow="fold")
    for entry in found.entries:
        at = f"{entry.at.astimezone():%Y-%m-%d %H:%M:%S}" if entry.at else "?"
        table.add_row(
            at,
            Text(entry.request_id or "–"),
            "–" if entry.replicas is None else str(entry.replicas),
            f"{'?' if entry.before is None else entry.before} → {entry.after}",
            Text(entry.host or "?"),
            _slots(entry),
            Text(_note(entry)),
        )
    return table


def _slots(entry: Entry) -> Text:
    line = Text()
    for sign, slots, style in (("+", entry.added, "green"), ("-", entry.removed, "yellow")):
        if slots:
            listed = ",".join(map(str, slots[:_FEW])) + (",…" if len(slots) > _FEW else "")
            line.append(f"{sign}{listed} ", style=style)
    return line or Text("–")


def _note(entry: Entry) -> str:
    notes = ["its config changed"] if entry.reconfigured else []
    return "; ".join([*notes, *([entry.note] if entry.note else [])])


async def run_plan(service: str, replicas: int, flags: Mapping[str, Any], *, json: bool) -> int:
    """Explain what scaling would do; 1 if it would be refused or capped."""
    check_name("service", service)
    async with connected(flags, "plan") as connection:
        found = await Operator(connection).plan(service, replicas)
    if json:
        print_json(found)
    else:
        _explain(found)
    return DONE if found.accepted else FAILED


def _explain(found: PlanResponse) -> None:
    counts = Counter(item.fate for item in found.slots)
    told = ", ".join(f"{counts[fate]} {_WORDS[fate]}" for fate in Fate if counts[fate])
    out.print(f"{found.service}: {found.before} → {found.target} ({told or 'nothing changes'})")
    if found.error:
        err.print(Text(found.error, style="red"))
    if found.stuck:
        err.print(Text(f"none is being replaced: {found.stuck}", style="red"))
    changing = [item for item in found.slots if item.fate is not Fate.STAYS]
    if changing:
        out.print(_slots_table(changing))
    out.print(_hosts_table(found.hosts, changing))
    if found.omitted:
        err.print(f"{found.omitted} slots and hosts did not fit the reply")


def _slots_table(changing: list[PlannedSlot]) -> Table:
    table = plain_table("SLOT", "", "HOST", "ID")
    for item in changing:
        fate = Text(_WORDS[item.fate], style=_COLOURS[item.fate])
        table.add_row(str(item.slot), fate, Text(item.host or "–"), Text(item.instance_id or "–"))
    return table


def _hosts_table(hosts: list[Candidate], changing: list[PlannedSlot]) -> Table:
    takes = Counter(item.host for item in changing if item.fate is Fate.COMES)
    table = plain_table("HOST", "ROOM NOW", "WOULD TAKE")
    table.add_column("WHY NOT", overflow="fold")
    for host in hosts:
        table.add_row(
            Text(host.name), str(host.room), str(takes[host.name]), Text(host.why_not or "–")
        )
    return table
