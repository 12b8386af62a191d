"""The progress of a verb that waits: one line on a terminal, else one line for each change."""

from __future__ import annotations

from typing import Self

from rich.status import Status
from rich.text import Text

from bridge.console import err, one_line


class Progress:
    """Shows the latest line on stderr while the block lasts. `quiet` shows nothing."""

    def __init__(self, first: str, *, quiet: bool) -> None:
        self._quiet = quiet
        self._last = ""
        self._status: Status | None = None
        if not quiet and err.is_terminal and not err.is_dumb_terminal:
            self._status = err.status(Text(first))

    def __enter__(self) -> Self:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def show(self, line: str) -> None:
        """Show `line`, unless it is the last one again."""
        if line == self._last or self._quiet:
            return
        self._last = line
        if self._status is not None:
            self._status.update(one_line(Text(line)))
        else:
            err.print(Text(line))
