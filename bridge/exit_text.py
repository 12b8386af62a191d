"""The words for how a process ended. A Box writes them into events, and readers find them there."""

from __future__ import annotations

import re
from typing import Final

_EXIT: Final = re.compile(r"(exited with code|killed by signal) ([0-9]{1,9})\b")


def describe_exit(*, code: int = 0, signal: int = 0) -> str:
    """The words for an exit code, or for the signal that killed the process."""
    return f"killed by signal {signal}" if signal else f"exited with code {code}"


def parse_exit(message: str) -> tuple[int | None, int | None]:
    """The exit code and the signal that `message` begins with; None for each that it lacks."""
    match = _EXIT.match(message)
    if match is None:
        return None, None
    number = int(match[2])
    return (number, None) if match[1] == "exited with code" else (None, number)
