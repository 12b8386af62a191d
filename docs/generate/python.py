"""The Python interface: each public name of `bridge`, with its docstring."""

from __future__ import annotations

import inspect
import re
from typing import Final

import bridge
from bridge.errors import BridgeError
from docs.generate.markdown import prose, table

_INTRODUCTION: Final = """\
# Python

`from bridge import …` gives every public name. What else a module holds may change. The errors have
[a page of their own](errors.md).

"""


def page() -> str:
    """The whole page."""
    rows = [[f"`{name}`", _summary(getattr(bridge, name))] for name in names()]
    return _INTRODUCTION + table(["name", "what it is"], rows)


def names() -> list[str]:
    """The public names that are no errors."""
    return [name for name in bridge.__all__ if not _is_error(getattr(bridge, name))]


def _is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BridgeError)


def _summary(value: object) -> str:
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return "the type " + re.sub(r"[\w.]+\.(?=\w)", "", f"`{value}`")
    first = (inspect.getdoc(value) or "").split("\n\n")[0]
    return prose(re.sub("::$", ".", first))
