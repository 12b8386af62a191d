"""The exit codes of the command line, and the one that each error gives."""

from __future__ import annotations

from typing import Final

from bridge.errors import (
    BridgeError,
    ConfigError,
    ConnectFailed,
    CutOff,
    NameRefused,
    NoReply,
    NoResponders,
)

DONE: Final = 0
FAILED: Final = 1  # refused, or failed
USAGE: Final = 2  # wrong usage, or a wrong configuration
UNANSWERED: Final = 3  # no answer, or not in time
PARTLY: Final = 4  # a part of what was asked for was accepted: `scale` beyond the fleet's capacity
INTERRUPTED: Final = 130  # Ctrl-C, as shells report it


def exit_code(exc: BridgeError) -> int:
    """The exit code for `exc`: FAILED, USAGE or UNANSWERED."""
    from bridge.gateway.errors import DrainTimeout, NoBoxError, RequestTimeout, WaitTimeout

    if isinstance(exc, ConfigError | NameRefused):
        return USAGE
    unanswered = (
        *(NoBoxError, RequestTimeout, WaitTimeout, DrainTimeout),
        *(ConnectFailed, CutOff, NoReply, NoResponders),
    )
    return UNANSWERED if isinstance(exc, unanswered) else FAILED
