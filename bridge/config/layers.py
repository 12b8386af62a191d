"""Layers of values: each is read, checked against its Struct, and overlaid by the next one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import asdict, fields

from bridge.config.explanation import explain
from bridge.config.nats_context import expand_home
from bridge.errors import ConfigError

Flags = Mapping[str, Mapping[str, Any]]
"""The values of flags, by the name of their table; None counts as not given."""
_FOREIGN: Final = (OSError, ValueError, RuntimeError, OverflowError, msgspec.MsgspecError)
"""What a wrong file, path or value can raise: any errno, text that is not UTF-8, a NUL byte, an
unknown home directory or nesting that is too deep (RuntimeError), JSON or a type that is wrong.
"""
T = TypeVar("T")


def place_of(file: Path | None, table: str) -> str:
    return f"{file or 'configuration'}: [{table}]"


def given_flags(flags: Flags) -> dict[str, dict[str, Any]]:
    return {
        table: {key: value for key, value in values.items() if value is not None}
        for table, values in flags.items()
    }


def from_environ(
    cls: type[Struct], variables: Mapping[str, str], environ: Mapping[str, str]
) -> dict[str, Any]:
    """The values in the environment, each converted to the type of its key."""
    types = {item.name: item.type for item in fields(cls)}
    given = {name: key for name, key in variables.items() if environ.get(name)}
    return {
        key: checked_struct(types[key], environ[name], name, strict=False)
        for name, key in given.items()
    }


def checked(cls: type[Struct], table: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The keys that `table` sets, after the whole table was checked."""
    struct = checked_struct(cls, table, place)
    return {key: value for key, value in asdict(struct).items() if key in table}


def checked_struct(cls: Any, table: Any, place: str, *, strict: bool = True) -> Any:
    with mapped_errors(place):
        try:
            return msgspec.convert(table, cls, strict=strict)
        except msgspec.ValidationError as exc:
            raise explain(cls, str(exc), place, table) from exc


def overlay(cls: type[T], layers: Sequence[Mapping[str, Any]], place: str) -> T:
    merged: dict[str, Any] = {}
    for layer in layers:
        merged |= layer
    checked: T = checked_struct(cls, merged, place)
    return checked


def expanded(path: str, environ: Mapping[str, str], place: str) -> str:
    """`path` with its ``~`` replaced."""
    with mapped_errors(place):
        return expand_home(path, environ)


@contextlib.contextmanager
def mapped_errors(where: str, problem: str = "") -> Iterator[None]:
    """Raise ConfigError for a foreign exception of the block."""
    try:
        yield
    except _FOREIGN as exc:
        reason = str(getattr(exc, "strerror", None) or exc or type(exc).__name__)
        cannot = "cannot be read: " if isinstance(exc, OSError) and not problem else ""
        raise ConfigError(where, f"{problem or cannot}{reason}") from exc


def number(text: str) -> int | None:
    """The number that `text` writes in at most 18 digits; None if it does not."""
    return int(text) if text.isdecimal() and len(text) <= 18 else None
