"""The command line, `box-bridge`: it parses the arguments, runs a verb and returns an exit code.

Each verb is a module of `bridge.cli.commands`, imported when it is used. `box-bridge --help`,
`--version` and `version` import neither cyclopts, rich, msgspec nor asyncio: they cost little more
than the start of Python.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TextIO

from bridge.cli.exit_codes import DONE, FAILED, INTERRUPTED, USAGE, exit_code
from bridge.cli.standard_streams import prepare_streams
from bridge.errors import BridgeError
from bridge.printable import indented

if TYPE_CHECKING:
    from inspect import BoundArguments

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
"""The errors of a stdout that takes no more: a full disk, a closed terminal."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line on `arguments` (default: those of the process); return the exit code.

    Errors of the package are printed to stderr. A reader of stdout that closes its end of the pipe
    ends the verb with exit code 0.
    """
    prepare_streams()
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if os.getpid() == 1:
            from bridge.cli.init_process import become_child_of_init

            if (code := become_child_of_init()) is not None:
                return code
        code = _run_light(words)
        code = _run_verb(words) if code is None else code
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _discard(sys.stdout)
        return DONE
    except OSError as exc:
        if exc.errno not in _FULL:
            raise
        _discard(sys.stdout)
        _complain(f"stdout cannot be written: {exc.strerror}")
        return FAILED
    try:
        sys.stderr.flush()
    except OSError:  # its terminal is closed
        _discard(sys.stderr)
    return code


def _discard(stream: TextIO) -> None:
    """Let `stream` go nowhere: Python flushes it once more at exit, which must not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _complain(problem: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be closed
        print(f"box-bridge: {indented(problem)}", file=sys.stderr, flush=True)


def _run_light(words: list[str]) -> int | None:
    """The exit code of a verb that needs no parser; None if `words` are any other."""
    if words in ([], ["--help"], ["-h"]):
        from bridge.cli.app import overview

        print(overview(), end="", flush=True)
        return DONE
    if words[0] == "__complete":
        from bridge.cli.completion import complete

        complete(words[1:])
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
    from bridge.cli.usage import describe_usage, missing_extra

    defer_import("aiohttp")
    names_no_verb = words[0].startswith("-") or words[0] in GROUPS
    try:
        app = build_app(complete=names_no_verb)
        verb, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
        return _call(verb, bound)
    except CycloptsError as exc:
        _complain(describe_usage(exc))
        return USAGE
    except ModuleNotFoundError as exc:
        if (problem := missing_extra(exc, words[0])) is None:
            raise
        _complain(problem)
        return USAGE


def _call(verb: Callable[..., Any], bound: BoundArguments) -> int:
    try:
        result = verb(*bound.args, **bound.kwargs)
        if hasattr(result, "__await__"):
            from bridge.cli.event_loop import run

            result = run(result)
    except BridgeError as exc:
        return _report(exc, bound)
    return result if isinstance(result, int) else DONE


def _report(exc: BridgeError, bound: BoundArguments) -> int:
    """Print the error and return its exit code. With --json, or -o json, a refused order is printed
    as the answer of the Box.
    """
    from bridge.gateway.errors import OrderRefused

    as_json = bound.arguments.get("json") or bound.arguments.get("output") == "json"
    if isinstance(exc, OrderRefused) and as_json:
        from bridge.console import print_json

        print_json(exc.response)
        return FAILED
    _complain(str(exc))
    return exit_code(exc)
