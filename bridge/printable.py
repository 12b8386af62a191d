"""The text of peers, made safe to show: on a terminal, in a log, a picture, a header or a label.

Every output of this package uses this one rule. Without it a peer could move the cursor of a
terminal, reverse the order of its letters, or add a line to a log that looks like one of ours.
"""

from __future__ import annotations

import json
from typing import Final

REPLACEMENT: Final = "�"
"""Stands for a character that is not printable."""


def printable(text: str, *, lines: bool = False) -> str:
    """`text` as one line of printable characters, and of the same length.

    White space other than a blank becomes a blank. Control characters (C0, DEL, C1), formatting
    characters (bidirectional overrides, zero-width ones), lone surrogates and unassigned characters
    become `REPLACEMENT`. With `lines` the text keeps its line breaks.
    """
    if text.isprintable():
        return text
    return "".join(
        char
        if char.isprintable() or (lines and char == "\n")
        else " "
        if char.isspace()
        else REPLACEMENT
        for char in text
    )


def indented(text: str) -> str:
    """`text` in printable lines, of which each but the first is indented: no line of a peer's text
    begins where a line of ours does.
    """
    return printable(text, lines=True).replace("\n", "\n    ")


def printable_json(text: str) -> str:
    """The JSON `text` with each character that is not printable as an escape: the same value."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)
