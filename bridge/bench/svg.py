"""A run as a picture: a bar for each row, as long as the row is good, and a line for the goal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from bridge.bench.report import describe, format_number
from bridge.bench.row import Result, at_least
from bridge.bench.runner import Report
from bridge.svg import GREEN, INK, RED, document, escaped, heading

_WIDTH: Final = 460  # pixels of the bars
_NAMES: Final = 330
_ROW: Final = 30
_BAR: Final = 14
_TOP: Final = 60
_MIDDLE: Final = _NAMES + _WIDTH / 2
_DECADES: Final = 1.5  # each way from the goal: 1/30 of it to 30 times


def render_svg(report: Report) -> str:
    """The report as an SVG document: to the right of the line is better than the goal. The dots
    are the rounds; the scale is logarithmic.
    """
    bottom = _TOP + _ROW * len(report.rows)
    return document(
        "box-bridge bench",
        _elements(report, bottom),
        width=_NAMES + _WIDTH + 190,
        height=bottom + 20 * 4,
        fills={"met": GREEN, "short": RED, "round": INK},
        strokes={"goal": INK},
        rules=".round{fill-opacity:.55}",
    )


def _elements(report: Report, bottom: int) -> Iterator[str]:
    yield heading("box-bridge bench")
    yield f'<text x="{_MIDDLE}" y="{_TOP - 10}" text-anchor="middle">goal</text>'
    for index, row in enumerate(report.rows):
        yield from _row(row, _TOP + _ROW * index)
    yield f'<path class="goal" d="M{_MIDDLE} {_TOP}V{bottom}"/>'
    for index, words in enumerate([*describe(report), *report.warnings[:1]]):
        yield f'<text x="12" y="{bottom + 20 * (index + 1)}">{escaped(words)}</text>'


def _row(row: Result, top: int) -> Iterator[str]:
    against = f" / {row.against}" if row.against else ""
    yield f'<text x="12" y="{top + 14}">{escaped(row.name + against)[:60]}</text>'
    value = row.value
    if value is None:
        yield f'<text x="{_NAMES}" y="{top + 14}">{escaped(row.error)[:90]}</text>'
        return
    unit = "×" if row.floor else f" {row.unit}"
    figure = f"{format_number(value.median)}{unit}" + (f" ({row.goal})" if row.goal else "")
    start, stop = sorted((_MIDDLE, _place(value.median, row)))
    yield (
        f'<rect class="{"met" if row.met else "short"}" x="{start:.1f}" y="{top + 3}" '
        f'width="{max(stop - start, 2):.1f}" height="{_BAR}">'
        f"<title>{escaped(row.what)}</title></rect>"
    )
    for number in row.ratios or row.ours:
        yield f'<circle class="round" cx="{_place(number, row):.1f}" cy="{top + 10}" r="2"/>'
    yield f'<text x="{_NAMES + _WIDTH + 12}" y="{top + 14}">{escaped(figure)}</text>'


def _place(value: float, row: Result) -> float:
    """The x of a value: the goal, or without one the value of the floor, is in the middle."""
    goal = row.goal or at_least(1.0)
    better = math.log10(max(value, 1e-12) / goal.bound) * (1 if goal.at_least else -1)
    return _MIDDLE + _WIDTH / 2 * min(max(better / _DECADES, -1.0), 1.0)
