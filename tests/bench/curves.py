"""Cost against size as a picture: a small chart for each curve, both scales logarithmic."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from bridge.svg import GREEN, GRID, INK, RED, document

if TYPE_CHECKING:
    from tests.bench.growth import Curve

COLUMNS = 3
WIDTH, HEIGHT = 300, 200
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 44, 28


def render_svg(curves: Sequence[Curve]) -> str:
    """The curves as an SVG document. A decade of cost has the same height in every chart with the
    same decades, so that slopes can be compared.
    """
    return document(
        "box-bridge: cost against size",
        _elements(curves),
        width=COLUMNS * WIDTH,
        height=math.ceil(len(curves) / COLUMNS) * HEIGHT,
        fills={"dot": INK},
        strokes={"grid": GRID, "sound": GREEN, "much": RED},
        rules=".sound,.much{stroke-width:2}.name{font-weight:bold}",
    )


def _elements(curves: Sequence[Curve]) -> Iterator[str]:
    for index, curve in enumerate(curves):
        row, column = divmod(index, COLUMNS)
        yield f'<g transform="translate({column * WIDTH} {row * HEIGHT})">'
        yield from _chart(curve)
        yield "</g>"


def _chart(curve: Curve) -> Iterator[str]:
    xs = [math.log10(size) for size, _ in curve.points]
    ys = [math.log10(max(cost, 1e-9)) for _, cost in curve.points]
    low, high = math.floor(min(ys)), math.ceil(max(ys))
    high = max(high, low + 1)

    def place(x: float, y: float) -> tuple[float, float]:
        width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        across = (x - xs[0]) / (xs[-1] - xs[0] or 1)
        return LEFT + width * across, TOP + height * (high - y) / (high - low)

    kind = "sound" if curve.sound else "much"
    yield f'<text class="name" x="10" y="16">{escape(curve.name)}</text>'
    yield f'<text x="10" y="32">{escape(curve.unit)}, ~ size^{curve.exponent:.2f}</text>'
    for decade in range(low, high + 1):
        (left, y), (right, _) = place(xs[0], decade), place(xs[-1], decade)
        yield f'<path class="grid" d="M{left:.1f} {y:.1f}H{right:.1f}"/>'
        yield f'<text x="{left - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{10.0**decade:g}</text>'
    places = [place(x, y) for x, y in zip(xs, ys, strict=True)]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    yield f'<path class="{kind}" d="M{path}"/>'
    for (x, y), (size, cost) in zip(places, curve.points, strict=True):
        yield f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3">'
        label = f"{size:,} {curve.of}: {cost:,.2f} {curve.unit}"
        yield f"<title>{escape(label)}</title></circle>"
        yield f'<text x="{x:.1f}" y="{HEIGHT - 10}" text-anchor="middle">{size:,}</text>'
