"""Lives as a picture that can be shared: one SVG file, with nothing in it but the drawing.

No script, no font and nothing from elsewhere, so that it opens in a browser, a wiki or a mail. Its
colours follow the reader's light or dark setting. What peers say stands in text alone, escaped.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final
from xml.sax.saxutils import escape

from bridge.cli.timeline.history import Life, Picture
from bridge.cli.timeline.text import MARKS, length
from bridge.console import COLOURS
from bridge.protocol import InstanceState, format_time

_WIDTH: Final = 900  # pixels of the time from begin to end; a bar is drawn to the pixel
_ROW: Final = 22
_BAR: Final = 14
_LETTER: Final = 7.3  # pixels of a letter, 12 px monospace
_TOP: Final = 64  # title and legend
_TICK: Final = 110  # pixels between two times on the axis, at least

_HUES: Final = {
    # the terminal's colour names: on a light page, on a dark one
    "cyan": ("#0e8fa8", "#39c5dc"),
    "green": ("#1f9d4d", "#2fbf66"),
    "bright_green": ("#57c943", "#8be65f"),
    "yellow": ("#d99a00", "#e8b93a"),
    "bright_black": ("#7a828c", "#8b949e"),
    "red": ("#d1242f", "#ff5c5c"),
}
_FAINT: Final = (InstanceState.CREATING, InstanceState.STOPPING)  # share a colour with the next

_STEPS: Final = (
    *(0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30),
    *(60, 120, 300, 600, 900, 1800),
    *(3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800),
)
"""Seconds between two times on the axis, such as people count in."""


def svg(picture: Picture, title: str) -> str:
    """The picture as an SVG document, `title` above it. Times are those of this place's clock."""
    names = [life.instance_id for life in picture.lives]
    margin = 20 + _LETTER * max(map(len, names), default=8)
    bottom = _TOP + _ROW * len(names)
    width, height = margin + _WIDTH + 50, bottom + (64 if picture.left_out else 44)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {_size(width, height)}>',
        f"<title>{escape(title)}</title>",
        f"<style>{_style()}</style>",
        '<rect class="page" width="100%" height="100%"/>',
        f'<text class="title" x="12" y="24">{escape(title)}</text>',
        *_legend(),
        *_axis(picture, margin, bottom),
    ]
    for index, life in enumerate(picture.lives):
        lines += _row(life, picture, margin, _TOP + _ROW * index)
    if picture.left_out:
        note = f"{picture.left_out} more that ended earlier are not shown"
        lines.append(f'<text x="12" y="{bottom + 50}">{note}</text>')
    return "\n".join([*lines, "</svg>", ""])


def _size(width: float, height: int) -> str:
    return f'width="{width:.0f}" height="{height}" viewBox="0 0 {width:.0f} {height}"'


def _style() -> str:
    def colours(dark: int) -> str:
        return "".join(
            f".{state}{{fill:{_HUES[COLOURS[state]][dark]};stroke:{_HUES[COLOURS[state]][dark]}}}"
            for state in InstanceState
        )

    faint = ",".join(f"rect.{state}" for state in _FAINT)
    return (
        "text{font:12px ui-monospace,Menlo,Consolas,monospace;fill:#424a53}"
        ".title{font-weight:bold;font-size:14px}"
        ".page{fill:#ffffff}.line{stroke:#d8dee4}.note{fill:#424a53}"
        "rect,text{stroke:none !important}path{fill:none !important;stroke-width:2.5}"
        f"{faint}{{fill-opacity:.5}}{colours(0)}"
        "@media(prefers-color-scheme:dark){"
        "text{fill:#c9d1d9}.page{fill:#0d1117}.line{stroke:#30363d}.note{fill:#e6edf3}"
        f"{colours(1)}}}"
    )


def _legend() -> Iterator[str]:
    x = 12.0
    for state in MARKS:
        if state is InstanceState.FAILED:
            yield _cross(x + 6, 44)
        else:
            yield f'<rect class="{state}" x="{x:.0f}" y="38" width="12" height="12"/>'
        yield f'<text x="{x + 18:.0f}" y="48">{state}</text>'
        x += 34 + _LETTER * len(str(state))


def _axis(picture: Picture, margin: float, bottom: int) -> Iterator[str]:
    """Lines at round times, and what time it is there."""
    span = _seconds(picture)
    step = next((step for step in _STEPS if step / span * _WIDTH >= _TICK), span / 6)
    begin = picture.begin.astimezone()
    midnight = begin.replace(hour=0, minute=0, second=0, microsecond=0)
    count = int((begin - midnight).total_seconds() / step) + 1
    form = "%d %b %H:%M" if span >= 86400 else "%H:%M" if step >= 60 else "%H:%M:%S"
    while (at := midnight + timedelta(seconds=count * step)) <= picture.end:
        x = margin + (at - begin).total_seconds() / span * _WIDTH
        text = f"{at.astimezone():{form}}" + (f".{at:%f}"[:2] if step < 1 else "")
        yield f'<path class="line" style="stroke-width:1" d="M{x:.1f} {_TOP - 4}V{bottom + 4}"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 20}" text-anchor="middle">{text}</text>'
        count += 1
    whole = f"{format_time(picture.begin)} to {format_time(picture.end)} ({length(span)})"
    yield f'<text x="{margin:.0f}" y="{bottom + 36}">{whole}</text>'


def _row(life: Life, picture: Picture, margin: float, top: int) -> Iterator[str]:
    name = escape(life.instance_id)
    yield f'<text x="12" y="{top + 12}">{name}</text>'
    for state, start, stop in _runs(life, picture):
        yield (
            f'<rect class="{state}" x="{margin + start:.0f}" y="{top + 2}" '
            f'width="{stop - start}" height="{_BAR}"><title>{name}: {state}</title></rect>'
        )
    for note in life.notes:
        x = margin + _column(note.at, picture)
        words = escape(f"{format_time(note.at)} {note.message}")
        place = f'cx="{x:.0f}" cy="{top + 9}" r="3"'
        yield f'<circle class="note" {place}><title>{words}</title></circle>'
    if life.ended is not None:
        x = margin + _column(life.last.at, picture)
        said = f"{life.ended} {format_time(life.last.at)} {life.last.message}"
        words = escape(f"{life.instance_id}: {said}")
        if life.ended is InstanceState.FAILED:
            yield _cross(x, top + 9, words)
        else:
            yield (
                f'<rect class="{life.ended}" x="{x - 2:.0f}" y="{top + 2}" width="5" '
                f'height="{_BAR}"><title>{words}</title></rect>'
            )


def _runs(life: Life, picture: Picture) -> Iterator[tuple[InstanceState, int, int]]:
    """The spans, in whole pixels: of several in one pixel the last is seen, so that no life takes
    more room than the picture has.
    """
    starts: dict[int, InstanceState] = {}
    stop = 0
    for span in life.spans:
        starts[_column(span.begin, picture)] = span.state
        stop = _column(span.end, picture)
    bounds = [*starts, max(stop, *starts, 0) if starts else 0]
    for state, start, end in zip(starts.values(), bounds, bounds[1:], strict=False):
        yield state, start, max(end, start + 1)


def _column(at: datetime, picture: Picture) -> int:
    passed = (at - picture.begin).total_seconds() / _seconds(picture)
    return round(min(max(passed, 0.0), 1.0) * _WIDTH)


def _seconds(picture: Picture) -> float:
    return max((picture.end - picture.begin).total_seconds(), 0.001)


def _cross(x: float, y: float, words: str = "failed") -> str:
    return (
        f'<path class="failed" d="M{x - 5:.0f} {y - 5:.0f}l10 10m0 -10l-10 10">'
        f"<title>{words}</title></path>"
    )
