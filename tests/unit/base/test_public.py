"""The public interface is what it says, and nothing is imported before it is needed."""

from __future__ import annotations

import inspect
import subprocess
import sys

import bridge
from bridge import errors


def test_all_is_sorted_and_every_name_exists() -> None:
    assert list(bridge.__all__) == sorted(bridge.__all__)
    assert all(hasattr(bridge, name) for name in bridge.__all__)


def test_importing_the_package_or_the_command_line_does_not_import_nats() -> None:
    code = "import sys, bridge, bridge.cli, bridge.cli.app; sys.exit('nats' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(bridge, "no_such_name")


def test_the_error_tree_in_the_docstring_is_the_tree() -> None:
    drawn: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        name = line.lstrip(" │├└─").split(" ")[0]
        if name and name[0].isupper() and isinstance(getattr(errors, name, None), type):
            drawn.append((line.index(name), name))
    parents: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for indent, name in drawn:
        while path and path[-1][0] >= indent:
            path.pop()
        if path:
            parents[name] = path[-1][1]
        path.append((indent, name))
    classes = {
        name: cls
        for name, cls in inspect.getmembers(errors, inspect.isclass)
        if issubclass(cls, errors.BridgeError) and cls is not errors.BridgeError
    }
    assert parents == {name: cls.__mro__[1].__name__ for name, cls in classes.items()}
