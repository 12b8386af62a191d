"""The standard streams of the command line: closed ones, and encodings without our characters.

Daemons and cron wrappers start programs with closed descriptors. Python has no stream object then,
and the next file that is opened gets the free number: a journal or a socket as "stdout". A terminal
in Latin-1 or ASCII has no arrow and no dash: each gets the nearest text that it has.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import Final

_PLAIN: Final = {
    "–": "-",
    "—": "-",
    "…": "...",
    "→": "->",
    "≥": ">=",
    "•": "*",
    "·": ".",
    "‘": "'",
    "’": "'",
    "“": '"',
    "”": '"',
    "╭": "+",
    "╮": "+",
    "╰": "+",
    "╯": "+",
    "─": "-",
    "│": "|",
    "━": "-",
    "┃": "|",
    "█": "#",
    "▓": "%",
    "▒": "~",
    "░": ":",
    "▫": "o",
    "■": "=",
    "✗": "x",
    "✓": "+",
}
"""The text for a character that the encoding of a stream lacks; "?" for any other."""

_HANDLER: Final = "box-bridge.plain"


def prepare_streams() -> None:
    """Open what is closed of stdin, stdout and stderr on /dev/null, and let each print any text."""
    codecs.register_error(_HANDLER, _replace)
    _open_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


def _open_closed() -> None:
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)  # the program that `register` runs gets it
    os.close(number)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            stream = os.fdopen(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False)
            setattr(sys, name, stream)


def _replace(exc: UnicodeError) -> tuple[str, int]:
    """What is written instead of the characters that `exc` names."""
    if not isinstance(exc, UnicodeEncodeError):
        raise exc
    return "".join(_PLAIN.get(char, "?") for char in exc.object[exc.start : exc.end]), exc.end
