"""What a value in the configuration has that it must not have, in the words of TOML.

msgspec names the types of its own; a person reads which key is wrong, and how to write it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
from msgspec.structs import fields

from bridge.errors import ConfigError
from bridge.settings import Probe, Secret

_UNKNOWN: Final = re.compile(r"^Object contains unknown field `([^`]+)`")
_MISSING: Final = re.compile(r"^Object missing required field `([^`]+)`")
_AT: Final = re.compile(r" - at `\$\.?([^`]*)`$")


_TYPE: Final = re.compile(r"^Expected `(\w+)(?: \| (?:null|object))?`, got `(\w+)`$")
_WORDS: Final = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "array": "a list",
    "object": "a table",
}
_IS_NUMBER: Final = re.compile(r"-?\d+(?:\.\d+)?")


def explain(cls: Any, text: str, place: str, table: Any) -> ConfigError:
    """The error for `table`, which is no `cls`, as msgspec's `text` says."""
    at = _AT.search(text)
    path = at[1] if at else ""
    problem = text[: at.start()] if at else text
    where = f"{place} {path}".strip()
    if unknown := _UNKNOWN.match(problem):
        known = [item.name for item in fields(_struct_at(path, cls))]
        return ConfigError(where, f"unknown key `{unknown[1]}`{nearest(unknown[1], known)}")
    if missing := _MISSING.match(problem):
        return ConfigError(where, f"`{missing[1]}` is missing")
    wrong = _TYPE.match(problem)
    if wrong and path and isinstance(table, Mapping):
        return ConfigError(place, _explain_type(path, wrong[1], wrong[2], table))
    return ConfigError(where, problem[:1].lower() + problem[1:])


def _struct_at(path: str, cls: Any) -> Any:
    """The Struct whose table is at `path` of a `cls`."""
    return Probe if path == "probe" else Secret if path.startswith("env[") else cls


def _explain_type(path: str, wanted: str, found: str, table: Mapping[str, Any]) -> str:
    """What is wrong with the type of the value at `path`, and how to write it."""
    key, _, rest = path.partition("[")
    value: Any = table
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if wanted == "array" and isinstance(value, str):
        words = ", ".join(msgspec.json.encode(word).decode() for word in value.split())
        return f"`{key}` is a list: `{key} = [{words}]`"
    name, value = _first_wrong(key, value, found) if rest else (key, value)
    last = name.rpartition(".")[2]
    of_list = bool(rest) and name == key
    must = f"{'each item of ' if of_list else ''}`{name}` must be {_WORDS.get(wanted, wanted)}"
    if wanted == "str" and isinstance(value, (bool, int, float)):
        text = str(value).lower() if isinstance(value, bool) else str(value)
        return f'{must}: `"{text}"`' if of_list else f'{must}: `{last} = "{text}"`'
    if wanted in ("int", "float") and isinstance(value, str) and _IS_NUMBER.fullmatch(value):
        return f"{must}: `{last} = {value}`"
    return f"{must}, not {_WORDS.get(found, found)}"


def _first_wrong(key: str, value: Any, found_type: str) -> tuple[str, Any]:
    """The first member of the table or list `value` that is not text, nor a secret."""
    right = (str,) if found_type == "object" else (str, Mapping)
    if isinstance(value, Mapping):
        found = ((f"{key}.{name}", item) for name, item in value.items())
    else:
        found = ((key, item) for item in value or ())
    return next((pair for pair in found if not isinstance(pair[1], right)), (key, value))


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about the unknown `word`: the nearest known one, or all of them."""
    close = difflib.get_close_matches(word, known := list(known), n=1, cutoff=0.5)
    return f"; did you mean `{close[0]}`?" if close else f"; known: {', '.join(sorted(known))}"
