"""A module that is imported when it is used, although another module imports it earlier.

nats-py imports aiohttp, which only WebSocket URLs need, and which takes a third of the time of
`box-bridge ps`. Only the command line does this: a library must not replace a module of its user.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any


def defer_import(name: str) -> None:
    """Until its first attribute is read, make ``import name`` cost nothing.

    It has no effect if the module is imported already, or not installed.
    """
    if name in sys.modules or (spec := importlib.util.find_spec(name)) is None:
        return

    def load(attribute: str) -> Any:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]
        return getattr(importlib.import_module(name), attribute)

    stand_in = ModuleType(name)
    stand_in.__spec__ = spec
    stand_in.__getattr__ = load  # type: ignore[method-assign]
    sys.modules[name] = stand_in
