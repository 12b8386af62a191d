"""The error reference: the tree, and each error with its cure, from the docstrings."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from typing import Final

import bridge
from bridge.errors import BridgeError
from docs.generate.markdown import prose

_INTRODUCTION: Final = """\
# Errors and their cures

Every error that box-bridge raises is a `bridge.BridgeError`. An error carries its data as
attributes, and its message says what to do. The headings are the classes, each under its parent.

"""


def page() -> str:
    """The whole page."""
    return _INTRODUCTION + "\n".join(_sections(BridgeError, depth=2))


def errors() -> list[type[BridgeError]]:
    """Every error of the package, parents first."""
    for module in pkgutil.walk_packages(bridge.__path__, "bridge."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found = [BridgeError]
    for error in found:
        found += [child for child in error.__subclasses__() if _ours(child)]
    return found


def _ours(error: type[BridgeError]) -> bool:
    return error.__module__.partition(".")[0] == "bridge"


def _sections(error: type[BridgeError], *, depth: int) -> list[str]:
    if depth == 2:
        errors()
    parent = error.__bases__[0].__name__
    kind = "" if error is BridgeError else f"*is a* `{parent}`\n\n"
    text = re.sub(r"\s+Fix: ", "\n\n**Fix:** ", prose(inspect.getdoc(error) or ""))
    own = f"{'#' * min(depth, 4)} {error.__name__}\n\n{kind}{text}\n"
    children = [child for child in error.__subclasses__() if _ours(child)]
    return [own, *(line for child in children for line in _sections(child, depth=depth + 1))]
