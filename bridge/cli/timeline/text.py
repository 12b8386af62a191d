"""Lives as bars over time, in letters."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final

from rich.text import Text

from bridge.cli.timeline.history import Life, Picture
from bridge.console import COLOURS
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

_FAILURES: Final = 5  # that are told in words, the latest


def bars(picture: Picture, *, width: int = 60) -> list[Text]:
    """A row for each life, the times beneath, the latest failures and a legend.

    `width` is how many letters the time from the picture's begin to its end takes.
    """
    if not picture.lives:
        return [Text("no events")]
    margin = max(len(life.instance_id) for life in picture.lives)
    rows = [
        Text(f"{life.instance_id:<{margin}} ").append_text(_bar(life, picture, width))
        for life in picture.lives
    ]
    scale = Text(" " * (margin + 1)).append(_scale(picture, width), style="bright_black")
    return [*rows, scale, *_failures(picture), _legend(margin)]


def length(seconds: float) -> str:
    """A length of time in its two largest units, tenths of a second below a minute."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def clock(at: datetime, span: float) -> str:
    """A time by this place's clock, with the date where `span` seconds are a day or more."""
    return f"{at.astimezone():{'%d %b %H:%M' if span >= 86400 else '%H:%M:%S'}}"


def _bar(life: Life, picture: Picture, width: int) -> Text:
    span = max((picture.end - picture.begin).total_seconds(), 0.001)

    def column(at: datetime) -> int:
        return min(width - 1, int((at - picture.begin).total_seconds() / span * width))

    bar = [Text(" ")] * width
    for step in life.spans:
        mark = Text(MARKS[step.state], style=COLOURS[step.state])
        start = column(step.begin)
        for place in range(start, max(start, column(step.end)) + 1):
            bar[place] = mark
    if life.ended is not None:
        bar[column(life.last.at)] = Text(MARKS[life.ended], style=COLOURS[life.ended])
    return Text().join(bar)


def _scale(picture: Picture, width: int) -> str:
    span = (picture.end - picture.begin).total_seconds()
    begin, end = clock(picture.begin, span), clock(picture.end, span)
    between = max(width - len(begin) - len(end), len(length(span)) + 2)
    return f"{begin}{length(span):^{between}}{end}"


def _failures(picture: Picture) -> Iterable[Text]:
    failed = [life for life in picture.lives if life.ended is InstanceState.FAILED]
    for life in sorted(failed, key=lambda life: life.last.at)[-_FAILURES:]:
        line = Text("✗ ", style=COLOURS[InstanceState.FAILED])
        line.append(f"{life.last.at.astimezone():%H:%M:%S} ", style="bright_black")
        yield line.append(f"{life.instance_id}  {life.last.message}", style="default")


def _legend(margin: int) -> Text:
    legend = Text(" " * (margin + 1))
    for state, mark in MARKS.items():
        legend.append(mark, style=COLOURS[state]).append(f" {state}  ", style="bright_black")
    return legend
