"""A timeline as an SVG picture that can be shared. The text of peers is escaped."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from bridge.cli.timeline.history import InstanceHistory, Timeline
from bridge.cli.timeline.text import MARKS, format_length
from bridge.console import COLOURS, local_time
from bridge.protocol import InstanceState, format_time
from bridge.svg import GREEN, GRID, INK, LETTER, RED, Colour, document, escaped, heading

_WIDTH: Final = 900  # pixels of the time from begin to end; a bar is drawn to the pixel
_ROW: Final = 22
_BAR: Final = 14
_TOP: Final = 64  # title and legend
_TICK: Final = 110  # pixels between two times on the axis, at least

_HUES: Final = {
    # the terminal's colour names
    "cyan": Colour("#0e8fa8", "#39c5dc"),
    "green": GREEN,
    "bright_green": Colour("#57c943", "#8be65f"),
    "yellow": Colour("#d99a00", "#e8b93a"),
    "bright_black": Colour("#7a828c", "#8b949e"),
    "red": RED,
}
_FAINT: Final = (InstanceState.CREATING, InstanceState.STOPPING)  # share a colour with the next

_STEPS: Final = (
    *(0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30),
    *(60, 120, 300, 600, 900, 1800),
    *(3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800),
)
"""Seconds between two times on the axis: round in the units of a clock and a calendar."""


def render_svg(timeline: Timeline, title: str) -> str:
    """The timeline as an SVG document under `title`. Times are local."""
    names = [one.instance_id for one in timeline.instances]
    margin = 20 + LETTER * max(map(len, names), default=8)
    bottom = _TOP + _ROW * len(names)
    return document(
        title,
        _elements(timeline, title, margin, bottom),
        width=margin + _WIDTH + 50,
        height=bottom + (64 if timeline.left_out else 44),
        fills={str(state): _HUES[COLOURS[state]] for state in InstanceState} | {"note": INK},
        strokes={"line": GRID, "failed": RED},
        rules=f".failed{{stroke-width:2.5}}{','.join(f'.{state}' for state in _FAINT)}"
        "{fill-opacity:.5}",
    )


def _elements(timeline: Timeline, title: str, margin: float, bottom: int) -> Iterator[str]:
    yield heading(title)
    yield from _legend()
    yield from _axis(timeline, margin, bottom)
    for index, instance in enumerate(timeline.instances):
        yield from _row(instance, timeline, margin, _TOP + _ROW * index)
    if timeline.left_out:
        note = f"{timeline.left_out} more that ended earlier are not shown"
        yield f'<text x="12" y="{bottom + 50}">{note}</text>'


def _legend() -> Iterator[str]:
    x = 12.0
    for state in MARKS:
        if state is InstanceState.FAILED:
            yield _cross(x + 6, 44)
        else:
            yield f'<rect class="{state}" x="{x:.0f}" y="38" width="12" height="12"/>'
        yield f'<text x="{x + 18:.0f}" y="48">{state}</text>'
        x += 34 + LETTER * len(str(state))


def _axis(timeline: Timeline, margin: float, bottom: int) -> Iterator[str]:
    """Lines at round times, each with its time."""
    span = _seconds(timeline)
    step = next((step for step in _STEPS if step / span * _WIDTH >= _TICK), span / 6)
    begin = local_time(timeline.begin)
    midnight = begin.replace(hour=0, minute=0, second=0, microsecond=0)
    count = int((begin - midnight).total_seconds() / step) + 1
    form = "%d %b %H:%M" if span >= 86400 else "%H:%M" if step >= 60 else "%H:%M:%S"
    while (at := midnight + timedelta(seconds=count * step)) <= timeline.end:
        x = margin + (at - begin).total_seconds() / span * _WIDTH
        text = f"{local_time(at):{form}}" + (f".{at:%f}"[:2] if step < 1 else "")
        yield f'<path class="line" d="M{x:.1f} {_TOP - 4}V{bottom + 4}"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 20}" text-anchor="middle">{text}</text>'
        count += 1
    times = f"{format_time(timeline.begin)} to {format_time(timeline.end)}"
    whole = f"{times} ({format_length(span)})"
    yield f'<text x="{margin:.0f}" y="{bottom + 36}">{whole}</text>'


def _row(instance: InstanceHistory, timeline: Timeline, margin: float, top: int) -> Iterator[str]:
    name = escaped(instance.instance_id)
    yield f'<text x="12" y="{top + 12}">{name}</text>'
    for state, start, stop in _spans(instance, timeline):
        yield (
            f'<rect class="{state}" x="{margin + start:.0f}" y="{top + 2}" '
            f'width="{stop - start}" height="{_BAR}"><title>{name}: {state}</title></rect>'
        )
    for note in instance.notes:
        x = margin + _column(note.at, timeline)
        words = escaped(f"{format_time(note.at)} {note.message}")
        place = f'cx="{x:.0f}" cy="{top + 9}" r="3"'
        yield f'<circle class="note" {place}><title>{words}</title></circle>'
    if instance.ended is not None:
        x = margin + _column(instance.last.at, timeline)
        reason = f"{instance.ended} {format_time(instance.last.at)} {instance.last.message}"
        words = escaped(f"{instance.instance_id}: {reason}")
        if instance.ended is InstanceState.FAILED:
            yield _cross(x, top + 9, words)
        else:
            yield (
                f'<rect class="{instance.ended}" x="{x - 2:.0f}" y="{top + 2}" width="5" '
                f'height="{_BAR}"><title>{words}</title></rect>'
            )


def _spans(
    instance: InstanceHistory, timeline: Timeline
) -> Iterator[tuple[InstanceState, int, int]]:
    """The spans in whole pixels. Of several in one pixel the last is drawn, so that an instance has
    at most one element for each pixel.
    """
    starts: dict[int, InstanceState] = {}
    stop = 0
    for span in instance.spans:
        starts[_column(span.begin, timeline)] = span.state
        stop = _column(span.end, timeline)
    bounds = [*starts, max(stop, *starts, 0) if starts else 0]
    for state, start, end in zip(starts.values(), bounds, bounds[1:], strict=False):
        yield state, start, max(end, start + 1)


def _column(at: datetime, timeline: Timeline) -> int:
    passed = (at - timeline.begin).total_seconds() / _seconds(timeline)
    return round(min(max(passed, 0.0), 1.0) * _WIDTH)


def _seconds(timeline: Timeline) -> float:
    return max((timeline.end - timeline.begin).total_seconds(), 0.001)


def _cross(x: float, y: float, words: str = "failed") -> str:
    return (
        f'<path class="failed" d="M{x - 5:.0f} {y - 5:.0f}l10 10m0 -10l-10 10">'
        f"<title>{words}</title></path>"
    )
