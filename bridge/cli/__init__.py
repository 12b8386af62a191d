"""The command line, `box-bridge`: it parses the arguments, runs a verb and returns an exit code.

Each verb is a module of `bridge.cli.commands`, imported when it is used. `box-bridge --help`,
`--version` and `version` import neither cyclopts, rich, msgspec nor asyncio: they cost little more
than the start of Python.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bridge.cli.exit_codes import DONE, FAILED, INTERRUPTED, USAGE, exit_code
from bridge.errors import BridgeError

if TYPE_CHECKING:
    from inspect import BoundArguments


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line on `arguments` (default: those of the process); return the exit code.

    Errors of the package are printed to stderr. A reader of stdout that closes its end of the pipe
    ends the verb with exit code 0.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if os.getpid() == 1:
            from bridge.cli.init_process import become_child_of_init

            if (code := become_child_of_init()) is not None:
                return code
        code = _run_light(words)
        return _run_verb(words) if code is None else code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more at exit, which must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def _run_light(words: list[str]) -> int | None:
    """The exit code of a verb that needs no parser; None if `words` are any other."""
    if words in ([], ["--help"], ["-h"]):
        from bridge.cli.app import overview

        print(overview(), end="", flush=True)
        return DONE
    if words == ["--version"]:
        from bridge.version import VERSION

        print(VERSION, flush=True)
        return DONE
    if words in (["version"], ["version", "--json"]):
        from bridge.cli.versions import print_versions

        return print_versions(json="--json" in words)
    return None


def _run_verb(words: list[str]) -> int:
    from cyclopts import CycloptsError

    from bridge.cli.app import GROUPS, build_app
    from bridge.cli.deferred_import import defer_import

    defer_import("aiohttp")
    names_no_verb = words[0].startswith("-") or words[0] in GROUPS
    try:
        app = build_app(complete=names_no_verb)
        verb, bound, _ = app.parse_args(words, exit_on_error=False)
    except CycloptsError:
        return USAGE  # cyclopts has printed it
    try:
        result = verb(*bound.args, **bound.kwargs)
        if hasattr(result, "__await__"):
            from bridge.cli.event_loop import run

            result = run(result)
    except BridgeError as exc:
        return _report(exc, bound)
    return result if isinstance(result, int) else DONE


def _report(exc: BridgeError, bound: BoundArguments) -> int:
    """Print the error and return its exit code. With --json a refused order is printed as the
    answer of the Box.
    """
    from bridge.gateway.errors import OrderRefused

    if isinstance(exc, OrderRefused) and bound.arguments.get("json"):
        from bridge.console import print_json

        print_json(exc.response)
        return FAILED
    print(f"box-bridge: {exc}", file=sys.stderr)
    return exit_code(exc)
