"""The public interface is complete, and nothing is imported before it is needed."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import bridge
from bridge import errors
from bridge.gateway import errors as gateway_errors

_BOX_ONLY = (errors.BoxError, errors.BenchFailed)  # a library caller cannot meet these


def test_all_is_sorted_and_every_name_exists() -> None:
    assert list(bridge.__all__) == sorted(bridge.__all__)
    assert all(hasattr(bridge, name) for name in bridge.__all__)


def test_type_checkers_see_the_names_that_the_package_exports() -> None:
    tree = ast.parse(Path(bridge.__file__).read_text(encoding="utf-8"))
    block = next(
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    seen = {
        alias.asname: node.module
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == bridge._MODULE_OF


def test_importing_the_package_or_the_command_line_does_not_import_nats() -> None:
    code = "import sys, bridge, bridge.cli, bridge.cli.app; sys.exit('nats' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_importing_the_package_imports_no_other_module_of_it() -> None:
    code = "import sys, bridge; print(*(name for name in sys.modules if name[:7] == 'bridge.'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(bridge, "no_such_name")


def test_every_class_that_public_names_take_or_return_is_exported() -> None:
    missing = {
        f"{name} (from {origin})" for name, origin in _closure().items() if not _exported(name)
    }
    assert not missing
    assert {"Host", "InstancesResponse", "NatsConfig", "Timing"} <= _closure().keys()


def test_every_error_that_a_public_docstring_names_is_exported() -> None:
    known = {cls.__name__ for cls in _error_classes()}
    missing = {
        f"{word} ({name})"
        for name in bridge.__all__
        for doc in _docstrings(getattr(bridge, name))
        for word in re.findall(r"\w+", doc)
        if word in known and not _exported(word)
    }
    assert not missing


def test_every_error_of_the_tree_is_exported_unless_only_a_box_raises_it() -> None:
    missing = {
        cls.__name__
        for cls in _error_classes()
        if not issubclass(cls, _BOX_ONLY) and not _exported(cls.__name__)
    }
    assert not missing


def test_the_error_tree_in_the_docstring_is_the_tree() -> None:
    drawn: list[tuple[int, str]] = []
    classes = {cls.__name__: cls for cls in _error_classes()}
    for line in (errors.__doc__ or "").splitlines():
        name = line.lstrip(" │├└─").split(" ")[0]
        if name == "BridgeError" or name in classes:
            drawn.append((line.index(name), name))
    parents: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for indent, name in drawn:
        while path and path[-1][0] >= indent:
            path.pop()
        if path:
            parents[name] = path[-1][1]
        path.append((indent, name))
    assert parents == {name: cls.__mro__[1].__name__ for name, cls in classes.items()}


# ── what the public names refer to ───────────────────────────────────────────────────────


def _exported(name: str) -> bool:
    return name in bridge.__all__


def _error_classes() -> list[type[errors.BridgeError]]:
    """All errors of the tree, without its root."""
    return [
        cls
        for module in (errors, gateway_errors)
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, errors.BridgeError)
        and cls is not errors.BridgeError
        and cls.__module__ == module.__name__
    ]


def _closure() -> dict[str, str]:
    """Each class of this package that a public name refers to, and one name that does so."""
    public = [getattr(bridge, name) for name in bridge.__all__]
    returned = {cls for item in public for cls in _returned(item)}
    found: dict[str, str] = {}
    waiting = list(public)
    while waiting:
        item = waiting.pop()
        for cls in _referred(item, constructed=item not in returned):
            if cls.__name__ not in found:
                found[cls.__name__] = getattr(item, "__name__", repr(item))
                waiting.append(cls)
    return found


def _referred(item: object, *, constructed: bool) -> Iterator[type]:
    """The classes in the annotations of `item`: an alias, a function, or a class with its fields,
    methods and properties. The constructor counts if callers call it.
    """
    if not inspect.isclass(item):
        yield from _in_function(item) if callable(item) else _classes_in(item)
        yield from _classes_in(item)
        return
    yield from (base for base in item.__mro__[1:] if _is_ours(base) and base.__name__[0] != "_")
    for annotation in typing.get_type_hints(item).values():
        yield from _classes_in(annotation)
    for name, function in _callables(item):
        if name == "__init__" and not constructed:
            continue
        if not name.startswith("_") or name.endswith("__"):
            yield from _in_function(function)


def _returned(item: object) -> Iterator[type]:
    """The classes that `item`, or a method of it, returns: callers do not construct those."""
    if inspect.isclass(item):
        for name, function in _callables(item):
            if not name.startswith("_") or name.endswith("__"):
                yield from _classes_in(_hints(function).get("return"))
    elif callable(item):
        yield from _classes_in(_hints(item).get("return"))


def _callables(cls: type) -> Iterator[tuple[str, Callable[..., object]]]:
    for name, member in vars(cls).items():
        if isinstance(member, property):
            member = member.fget
        elif isinstance(member, (classmethod, staticmethod)):
            member = member.__func__
        member = getattr(member, "__wrapped__", member)  # of a context manager
        if inspect.isfunction(member):
            yield name, member


def _in_function(function: object) -> Iterator[type]:
    for annotation in _hints(function).values():
        yield from _classes_in(annotation)


def _hints(function: object) -> dict[str, object]:
    function = getattr(function, "__wrapped__", function)
    return typing.get_type_hints(function) if inspect.isfunction(function) else {}


def _classes_in(annotation: object) -> Iterator[type]:
    if inspect.isclass(annotation) and _is_ours(annotation):
        yield annotation
    for argument in typing.get_args(annotation):
        if isinstance(argument, list):  # the parameters of a Callable
            for each in argument:
                yield from _classes_in(each)
        else:
            yield from _classes_in(argument)


def _is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "bridge"


@functools.cache
def _docstrings(item: object) -> tuple[str, ...]:
    docs = [inspect.getdoc(item) or ""]
    if inspect.isclass(item) and _is_ours(item):
        docs += [inspect.getdoc(function) or "" for name, function in _callables(item)]
    return tuple(docs)
