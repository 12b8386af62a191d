"""The forms in which a verb prints its result: a table, a wide one, JSON, YAML, or names alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, Final, Literal

from cyclopts import Parameter
from msgspec import Struct

from bridge.console import out, print_json
from bridge.errors import ConfigError
from bridge.protocol import encode

Output = Annotated[
    Literal["wide", "json", "yaml", "name"] | None,
    Parameter(
        name=["--output", "-o"],
        help="All columns, JSON, YAML, or names alone, one a line.",
    ),
]
DataOutput = Annotated[
    Literal["json", "yaml"] | None,
    Parameter(name=["--output", "-o"], help="JSON, as --json does, or YAML."),
]

_PLAIN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_RESERVED: Final = ("true", "false", "null", "yes", "no", "on", "off", "y", "n", "nan", "inf")


class Style(Struct, frozen=True, kw_only=True):
    """The chosen form; an empty `form` is the table for people."""

    form: str = ""

    @classmethod
    def of(cls, output: str | None, *, json: bool) -> Style:
        """The style that ``-o`` and ``--json`` select. Raises ConfigError if they differ."""
        if json and output not in (None, "json"):
            raise ConfigError("--json", f"contradicts `-o {output}`: give one of them")
        return cls(form="json" if json else output or "")

    @property
    def wide(self) -> bool:
        """Whether no column is left out."""
        return self.form == "wide"

    @property
    def for_programs(self) -> bool:
        """Whether the result is data, not a table."""
        return self.form in ("json", "yaml", "name")

    def print_data(self, value: Struct, names: Callable[[], Iterable[str]] = lambda: ()) -> bool:
        """Print `value`, or its `names`, if the style is one for programs; returns whether it is.

        In YAML each value is a document.
        """
        if self.form == "json":
            print_json(value)
        elif self.form == "yaml":
            print("---", *yaml_lines(json.loads(encode(value))), sep="\n", flush=True)
        elif self.form == "name":
            for name in names():
                out.print(name, markup=False)
        return self.for_programs


def yaml_lines(value: Any) -> Iterator[str]:
    """The lines of a YAML document with `value`, which JSON could contain. ASCII alone."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _entry(f"{_scalar(key)}:", item)
    elif isinstance(value, list) and value:
        for item in value:
            first, *rest = yaml_lines(item)
            yield f"- {first}"
            yield from (f"  {line}" for line in rest)
    else:
        yield _scalar(value)


def _entry(key: str, item: Any) -> Iterator[str]:
    lines = list(yaml_lines(item))
    if isinstance(item, dict | list) and item:
        indent = "" if isinstance(item, list) else "  "
        yield key
        yield from (indent + line for line in lines)
    else:
        yield f"{key} {lines[0]}"


def _scalar(value: Any) -> str:
    """JSON is YAML, except that YAML has no surrogate pairs."""
    if not isinstance(value, str):
        return json.dumps(value)
    if _PLAIN.fullmatch(value) and value.lower() not in _RESERVED:
        return value
    return '"' + "".join(map(_letter, value)) + '"'


def _letter(char: str) -> str:
    code = ord(char)
    if char in '"\\':
        return "\\" + char
    if 0x20 <= code < 0x7F:
        return char
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
