"""Cost against size as a picture: a small chart for each curve, both scales logarithmic."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from tests.bench.growth import Curve

COLUMNS = 3
WIDTH, HEIGHT = 300, 200
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 44, 28

STYLE = (
    "text{font:11px ui-monospace,monospace;fill:#24292f}.page{fill:#fff}.name{font-weight:bold}"
    ".grid{stroke:#d0d7de}.sound{stroke:#1f9d4d;fill:none;stroke-width:2}"
    ".much{stroke:#d1242f;fill:none;stroke-width:2}.dot{fill:#24292f}"
    "@media(prefers-color-scheme:dark){text{fill:#c9d1d9}.page{fill:#0d1117}.grid{stroke:#30363d}"
    ".dot{fill:#c9d1d9}}"
)


def svg(curves: Sequence[Curve]) -> str:
    """The curves as an SVG document. One decade of cost is as high as in every other chart of its
    width, so that a slope can be seen: flat, or no steeper than its share.
    """
    rows = math.ceil(len(curves) / COLUMNS)
    size = f'width="{COLUMNS * WIDTH}" height="{rows * HEIGHT}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size}>',
        "<title>box-bridge: cost against size</title>",
        f"<style>{STYLE}</style>",
        '<rect class="page" width="100%" height="100%"/>',
    ]
    for index, curve in enumerate(curves):
        row, column = divmod(index, COLUMNS)
        lines.append(f'<g transform="translate({column * WIDTH} {row * HEIGHT})">')
        lines += _chart(curve)
        lines.append("</g>")
    return "\n".join([*lines, "</svg>", ""])


def _chart(curve: Curve) -> Iterator[str]:
    xs = [math.log10(size) for size, _ in curve.points]
    ys = [math.log10(max(cost, 1e-9)) for _, cost in curve.points]
    low, high = math.floor(min(ys)), math.ceil(max(ys))
    high = max(high, low + 1)

    def at(x: float, y: float) -> tuple[float, float]:
        wide, tall = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        across = (x - xs[0]) / (xs[-1] - xs[0] or 1)
        return LEFT + wide * across, TOP + tall * (high - y) / (high - low)

    kind = "sound" if curve.sound else "much"
    yield f'<text class="name" x="10" y="16">{escape(curve.name)}</text>'
    yield f'<text x="10" y="32">{escape(curve.unit)}, ~ size^{curve.exponent:.2f}</text>'
    for decade in range(low, high + 1):
        (left, y), (right, _) = at(xs[0], decade), at(xs[-1], decade)
        yield f'<path class="grid" d="M{left:.1f} {y:.1f}H{right:.1f}"/>'
        yield f'<text x="{left - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{10.0**decade:g}</text>'
    places = [at(x, y) for x, y in zip(xs, ys, strict=True)]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    yield f'<path class="{kind}" d="M{path}"/>'
    for (x, y), (size, cost) in zip(places, curve.points, strict=True):
        yield f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3">'
        said = f"{size:,} {curve.of}: {cost:,.2f} {curve.unit}"
        yield f"<title>{escape(said)}</title></circle>"
        yield f'<text x="{x:.1f}" y="{HEIGHT - 10}" text-anchor="middle">{size:,}</text>'
