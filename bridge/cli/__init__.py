"""The command line: `box-bridge`."""

from __future__ import annotations

import os
import sys

from bridge.errors import (
    BridgeError,
    ConfigError,
    ConnectFailed,
    CutOff,
    DrainTimeout,
    NameRefused,
    NoBoxError,
    NoReply,
    NoResponders,
    RequestTimeout,
    WaitTimeout,
)

DONE, FAILED, USAGE, UNANSWERED, INTERRUPTED = 0, 1, 2, 3, 130

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


def main() -> int:
    """Run the command line; returns the exit code."""
    from cyclopts import CycloptsError

    from bridge.cli.app import app

    try:
        result = app(exit_on_error=False, result_action="return_value")
    except CycloptsError:
        return USAGE  # it has been printed
    except BridgeError as exc:
        print(f"box-bridge: {exc}", file=sys.stderr)
        return exit_code(exc)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has left; that is no error of ours, nor is what is still buffered.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    return result if isinstance(result, int) else DONE


def exit_code(exc: BridgeError) -> int:
    """0 done, 1 refused or failed, 2 wrong usage, 3 nobody answered or it took too long."""
    if isinstance(exc, _USAGE):
        return USAGE
    return UNANSWERED if isinstance(exc, _UNANSWERED) else FAILED
