"""A timeline as text: a bar for each instance."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final

from rich.text import Text

from bridge.cli.timeline.history import InstanceHistory, Timeline
from bridge.console import COLOURS, local_time
from bridge.protocol import InstanceState

MARKS: Final = {
    InstanceState.CREATING: "·",
    InstanceState.BOOTING: "░",
    InstanceState.READY: "█",
    InstanceState.BUSY: "▓",
    InstanceState.DRAINING: "▒",
    InstanceState.STOPPING: "▫",
    InstanceState.STOPPED: "■",
    InstanceState.FAILED: "✗",
}

_FAILURES: Final = 5  # the latest failures whose reasons are listed


def render_text(timeline: Timeline, *, width: int = 60) -> list[Text]:
    """A row for each instance, the times below, the latest failures and a legend.

    `width` is the number of letters between the begin and the end of the timeline.
    """
    if not timeline.instances:
        return [Text("no events")]
    margin = max(len(one.instance_id) for one in timeline.instances)
    rows = [
        Text(f"{one.instance_id:<{margin}} ").append_text(_bar(one, timeline, width))
        for one in timeline.instances
    ]
    scale = Text(" " * (margin + 1)).append(_scale(timeline, width), style="bright_black")
    return [*rows, scale, *_failures(timeline), _legend(margin)]


def format_length(seconds: float) -> str:
    """A length of time in its two largest units; tenths of a second below a minute."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def _format_clock(at: datetime, span: float) -> str:
    """The local time, with the date if `span` seconds are a day or more."""
    return f"{local_time(at):{'%d %b %H:%M' if span >= 86400 else '%H:%M:%S'}}"


def _bar(instance: InstanceHistory, timeline: Timeline, width: int) -> Text:
    span = max((timeline.end - timeline.begin).total_seconds(), 0.001)

    def column(at: datetime) -> int:
        return min(width - 1, int((at - timeline.begin).total_seconds() / span * width))

    bar = [Text(" ")] * width
    for step in instance.spans:
        mark = Text(MARKS[step.state], style=COLOURS[step.state])
        start = column(step.begin)
        for place in range(start, max(start, column(step.end)) + 1):
            bar[place] = mark
    if instance.ended is not None:
        end = Text(MARKS[instance.ended], style=COLOURS[instance.ended])
        bar[column(instance.last.at)] = end
    return Text().join(bar)


def _scale(timeline: Timeline, width: int) -> str:
    span = (timeline.end - timeline.begin).total_seconds()
    begin, end = _format_clock(timeline.begin, span), _format_clock(timeline.end, span)
    length = format_length(span)
    between = max(width - len(begin) - len(end), len(length) + 2)
    return f"{begin}{length:^{between}}{end}"


def _failures(timeline: Timeline) -> Iterable[Text]:
    failed = [one for one in timeline.instances if one.ended is InstanceState.FAILED]
    for one in sorted(failed, key=lambda one: one.last.at)[-_FAILURES:]:
        line = Text("✗ ", style=COLOURS[InstanceState.FAILED])
        line.append(f"{local_time(one.last.at):%H:%M:%S} ", style="bright_black")
        yield line.append(f"{one.instance_id}  {one.last.message}", style="default")


def _legend(margin: int) -> Text:
    legend = Text(" " * (margin + 1))
    for state, mark in MARKS.items():
        legend.append(mark, style=COLOURS[state]).append(f" {state}  ", style="bright_black")
    return legend
