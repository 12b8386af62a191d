"""A run as text: the table of its rows, and the machine and server that it ran on."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from bridge.bench.row import Result, Spread
from bridge.bench.runner import Report
from bridge.console import plain_table


def render_table(report: Report) -> Table:
    """A line for each row: both medians, the ratio with its lowest and highest, and the goal."""
    table = plain_table("ROW", "AGAINST")
    for name in ("OURS", "THEIRS", "RATIO", "LOW", "HIGH", "GOAL"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in report.rows:
        table.add_row(Text(row.name), Text(row.against or "-"), *_figures(row), _verdict(row))
    return table


def _figures(row: Result) -> list[str]:
    value = row.value
    goal = str(row.goal or "-")
    if value is None:
        return ["-", "-", "-", "-", "-", goal]
    ours = f"{format_number(Spread.of(row.ours).median)} {row.unit}"
    if not row.floor:
        return [ours, "-", "-", format_number(value.low), format_number(value.high), goal]
    theirs = f"{format_number(Spread.of(row.floor).median)} {row.unit}"
    ratios = [f"{part:.2f}" for part in (value.median, value.low, value.high)]
    return [ours, theirs, *ratios, goal]


def _verdict(row: Result) -> Text:
    if row.error:
        return Text(f"failed: {row.error}", style="red")
    if row.goal is None:
        return Text("")
    return Text("met", style="green") if row.met else Text("short", style="red")


def format_number(value: float) -> str:
    """A figure with three significant digits, thousands marked."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def describe(report: Report) -> list[str]:
    """The machine, the versions and the server of the run, a line each."""
    machine = report.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    server = ", ".join(f"{name} {value}" for name, value in report.server.items())
    size = f"{machine.cpus} processors, {machine.memory_gib} GiB"
    return [
        f"{machine.processor}, {size}, {machine.system}",
        f"{machine.python} on {machine.loop}; {versions}",
        f"NATS: {server or 'unknown'}; {report.rounds} rounds, medians; started {report.at}",
    ]
