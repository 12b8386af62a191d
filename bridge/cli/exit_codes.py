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
from bridge.gateway.errors import DrainTimeout, NoBoxError, RequestTimeout, WaitTimeout

DONE: Final = 0
FAILED: Final = 1  # refused, or failed
USAGE: Final = 2  # wrong usage, or a wrong configuration
UNANSWERED: Final = 3  # no answer, or not in time
INTERRUPTED: Final = 130  # Ctrl-C, as shells report it

_USAGE = (ConfigError, NameRefused)
_UNANSWERED = (
    NoBoxError,
    RequestTimeout,
    WaitTimeout,
    DrainTimeout,
    ConnectFailed,
    CutOff,
    NoReply,
    NoResponders,
)


def exit_code(exc: BridgeError) -> int:
    """0 done, 1 refused or failed, 2 wrong usage, 3 nobody answered or it took too long."""
    if isinstance(exc, _USAGE):
        return USAGE
    return UNANSWERED if isinstance(exc, _UNANSWERED) else FAILED
