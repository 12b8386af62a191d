"""The command line: `box-bridge`.

It runs on uvloop where that is installed (``pip install 'box-bridge[fast]'``), which answers a
request in four fifths of the time. A library has no say in that: who uses this package as one runs
the loop of their choice.
"""

from __future__ import annotations

import asyncio
import os
import sys

from bridge.cli.exit_codes import DONE, INTERRUPTED, USAGE, exit_code
from bridge.errors import BridgeError


class QuickLoops(asyncio.DefaultEventLoopPolicy):
    """uvloop's event loops, or asyncio's own where there is no uvloop."""

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        try:
            import uvloop
        except ImportError:
            return super().new_event_loop()
        return uvloop.new_event_loop()


def main() -> int:
    """Run the command line; returns the exit code."""
    from cyclopts import CycloptsError

    from bridge.cli.app import app

    asyncio.set_event_loop_policy(QuickLoops())
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
