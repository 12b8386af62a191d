"""The words for an exit: what is written into an event is found there again."""

from __future__ import annotations

import pytest

from bridge.box.runtimes.base import Exit
from bridge.exit_text import parse_exit


@pytest.mark.parametrize(
    ("end", "found"),
    [
        (Exit(code=3), (3, None)),
        (Exit(code=0, why="no such image"), (0, None)),
        (Exit(signal=9, why="out of memory"), (None, 9)),
        (Exit(code=None), (None, None)),
        (Exit(fenced=True, signal=9), (None, None)),
    ],
)
def test_the_exit_code_or_signal_of_a_message_is_found(
    end: Exit, found: tuple[int | None, int | None]
) -> None:
    assert parse_exit(f"{end}: its last line") == found


def test_a_message_that_only_quotes_an_exit_has_none() -> None:
    assert parse_exit("not ready within 60 s: exited with code 3") == (None, None)
