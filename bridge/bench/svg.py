"""A run as a picture: a bar for each row, as long as the row is good, and a line for the goal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final
from xml.sax.saxutils import escape

from bridge.bench.report import number, setting
from bridge.bench.row import Result, at_least
from bridge.bench.runner import Report

_WIDTH: Final = 460  # pixels of the bars
_NAMES: Final = 330
_ROW: Final = 30
_BAR: Final = 14
_TOP: Final = 60
_DECADES: Final = 1.5  # each way from the goal: 1/30 of it to 30 times

_STYLE: Final = (
    "text{font:12px ui-monospace,monospace;fill:#24292f}.title{font-size:15px;font-weight:bold}"
    ".page{fill:#fff}.met{fill:#1f9d4d}.short{fill:#d1242f}.goal{stroke:#24292f}"
    ".round{fill:#24292f;fill-opacity:.55}"
    "@media(prefers-color-scheme:dark){text{fill:#c9d1d9}.page{fill:#0d1117}"
    ".met{fill:#2fbf66}.short{fill:#ff5c5c}.goal{stroke:#c9d1d9}.round{fill:#c9d1d9}}"
)


def svg(report: Report) -> str:
    """The report as an SVG document: to the right of the line is better than the goal. The dots
    are the rounds; the scale is logarithmic.
    """
    height = _TOP + _ROW * len(report.rows) + 20 * 4
    width = _NAMES + _WIDTH + 190
    middle = _NAMES + _WIDTH / 2
    bottom = _TOP + _ROW * len(report.rows)
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size}>',
        "<title>box-bridge bench</title>",
        f"<style>{_STYLE}</style>",
        '<rect class="page" width="100%" height="100%"/>',
        '<text class="title" x="12" y="24">box-bridge bench</text>',
        f'<text x="{middle}" y="{_TOP - 10}" text-anchor="middle">goal</text>',
    ]
    for index, row in enumerate(report.rows):
        lines += _row(row, _TOP + _ROW * index)
    lines.append(f'<path class="goal" d="M{middle} {_TOP}V{bottom}"/>')
    for index, words in enumerate([*setting(report), *report.warnings[:1]]):
        lines.append(f'<text x="12" y="{bottom + 20 * (index + 1)}">{escape(words)}</text>')
    return "\n".join([*lines, "</svg>", ""])


def _row(row: Result, top: int) -> Iterator[str]:
    against = f" / {row.against}" if row.against else ""
    yield f'<text x="12" y="{top + 14}">{escape(row.name + against)[:60]}</text>'
    value = row.value
    if value is None:
        yield f'<text x="{_NAMES}" y="{top + 14}">{escape(row.error)[:90]}</text>'
        return
    unit = "×" if row.floor else f" {row.unit}"
    said = f"{number(value.median)}{unit}" + (f" ({row.goal})" if row.goal else "")
    end = _place(value.median, row)
    start, stop = sorted((_NAMES + _WIDTH / 2, end))
    yield (
        f'<rect class="{"met" if row.met else "short"}" x="{start:.1f}" y="{top + 3}" '
        f'width="{max(stop - start, 2):.1f}" height="{_BAR}">'
        f"<title>{escape(row.what)}</title></rect>"
    )
    for figure in row.ratios or row.ours:
        yield f'<circle class="round" cx="{_place(figure, row):.1f}" cy="{top + 10}" r="2"/>'
    yield f'<text x="{_NAMES + _WIDTH + 12}" y="{top + 14}">{escape(said)}</text>'


def _place(value: float, row: Result) -> float:
    """How far to the right: as good as the goal, or without one as the floor, is in the middle."""
    goal = row.goal or at_least(1.0)
    better = math.log10(max(value, 1e-12) / goal.bound) * (1 if goal.at_least else -1)
    share = min(max(better / _DECADES, -1.0), 1.0)
    return _NAMES + _WIDTH / 2 * (1 + share)
