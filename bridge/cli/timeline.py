"""The lives of instances as bars over time, from their events."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from rich.text import Text

from bridge.cli.output import COLOURS
from bridge.protocol import InstanceEvent, InstanceState

_MARKS = {
    InstanceState.CREATING: "·",
    InstanceState.BOOTING: "░",
    InstanceState.READY: "█",
    InstanceState.BUSY: "▓",
    InstanceState.DRAINING: "▒",
    InstanceState.STOPPING: "▫",
}
_ENDS = {InstanceState.STOPPED: "■", InstanceState.FAILED: "✗"}


def timeline(events: Iterable[InstanceEvent], *, width: int = 60) -> list[Text]:
    """A row for each instance, in the order of their first events, and a legend.

    `width` is how many letters the time from the first event to the last one takes.
    """
    lives: dict[str, list[InstanceEvent]] = {}
    for event in events:
        lives.setdefault(event.instance_id, []).append(event)
    if not lives:
        return [Text("no events")]
    first = min(life[0].timestamp for life in lives.values())
    last = max(life[-1].timestamp for life in lives.values())
    span = max((last - first).total_seconds(), 0.001)
    margin = max(map(len, lives))
    rows = [
        Text(f"{name:<{margin}} ").append_text(_bar(life, first, span, width))
        for name, life in lives.items()
    ]
    scale = Text(f"{'':<{margin}} 0s{'':{width - 3 - len(f'{span:.1f}s')}} {span:.1f}s")
    return [*rows, scale, _legend(margin)]


def _bar(life: list[InstanceEvent], first: datetime, span: float, width: int) -> Text:
    def column(at: datetime) -> int:
        return min(width - 1, int((at - first).total_seconds() / span * width))

    bar = [Text(" ")] * width
    for event, following in zip(life, [*life[1:], None], strict=True):
        start = column(event.timestamp)
        state = event.to_state
        if state in _ENDS:
            bar[start] = Text(_ENDS[state], style=COLOURS[state])
        else:
            end = width - 1 if following is None else column(following.timestamp)
            for place in range(start, max(start, end) + 1):
                bar[place] = Text(_MARKS[state], style=COLOURS[state])
    return Text().join(bar)


def _legend(margin: int) -> Text:
    legend = Text(" " * (margin + 1))
    for state, mark in {**_MARKS, **_ENDS}.items():
        legend.append(mark, style=COLOURS[state]).append(f" {state}  ", style="bright_black")
    return legend
