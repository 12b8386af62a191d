"""The look of every picture that this package draws: an SVG document that contains all it needs.

It has no script, no font and no link, so that it opens in a browser, a wiki or a mail. Its colours
follow the reader's light or dark setting.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple
from xml.sax.saxutils import escape

from bridge.printable import printable


class Colour(NamedTuple):
    """A colour on a light page, and the same on a dark page."""

    light: str
    dark: str


INK: Final = Colour("#24292f", "#c9d1d9")
PAGE: Final = Colour("#ffffff", "#0d1117")
GRID: Final = Colour("#d0d7de", "#30363d")
GREEN: Final = Colour("#1f9d4d", "#2fbf66")
RED: Final = Colour("#d1242f", "#ff5c5c")

LETTER: Final = 7.3
"""The width of a letter, in pixels."""


def document(
    title: str,
    body: Iterable[str],
    *,
    width: float,
    height: float,
    fills: Mapping[str, Colour] | None = None,
    strokes: Mapping[str, Colour] | None = None,
    rules: str = "",
) -> str:
    """A document of `width` by `height` pixels that contains the elements of `body`.

    An element of a class in `fills` or `strokes` has that colour. `rules` is more CSS.
    """
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size}>',
        f"<title>{escaped(title)}</title>",
        f"<style>{_style(fills or {}, strokes or {}, rules)}</style>",
        '<rect class="page" width="100%" height="100%"/>',
        *body,
        "</svg>",
        "",
    ]
    return "\n".join(lines)


def escaped(text: str) -> str:
    """`text` as the content of an element: printable, and without markup."""
    return escape(printable(text))


def heading(text: str) -> str:
    """The title, at the top of the page."""
    return f'<text class="title" x="12" y="24">{escaped(text)}</text>'


def _style(fills: Mapping[str, Colour], strokes: Mapping[str, Colour], rules: str) -> str:
    paint = [("text", "fill", INK), (".page", "fill", PAGE)]
    paint += [(f".{name}", "fill", colour) for name, colour in fills.items()]
    paint += [(f".{name}", "stroke", colour) for name, colour in strokes.items()]
    light = "".join(f"{css}{{{kind}:{colour.light}}}" for css, kind, colour in paint)
    dark = "".join(f"{css}{{{kind}:{colour.dark}}}" for css, kind, colour in paint)
    return (
        "text{font:12px ui-monospace,Menlo,Consolas,monospace}"
        ".title{font-weight:bold;font-size:14px}path{fill:none}"
        f"{rules}{light}@media(prefers-color-scheme:dark){{{dark}}}"
    )
