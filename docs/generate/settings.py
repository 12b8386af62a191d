"""The configuration reference, from the settings' fields, defaults and docstrings."""

from __future__ import annotations

import ast
import inspect
from typing import Any, Final

import msgspec
from msgspec import NODEFAULT, Struct
from msgspec.structs import FieldInfo, fields

from bridge.config import BOX_VARIABLES, NATS_VARIABLES
from bridge.settings import BoxConfig, NatsConfig, Probe, ServiceConfig, Timing
from docs.generate.markdown import prose, table

HOST: Final[dict[str, type[Struct]]] = {
    "[box]": BoxConfig,
    "[services.&lt;name&gt;]": ServiceConfig,
    "The keys of probe": Probe,
}
CONNECTION: Final[dict[str, type[Struct]]] = {"[nats]": NatsConfig, "[timing]": Timing}
_VARIABLES: Final = {
    BoxConfig: {key: name for name, key in BOX_VARIABLES.items()},
    NatsConfig: {key: name for name, key in NATS_VARIABLES.items()},
}
_INTRODUCTION: Final = """\
# Configuration

A Box reads one TOML file. `-c` names it, else `BOX_BRIDGE_CONFIG`, else it is `box.toml` in the
current directory. The environment overrides the file, and a flag overrides both.

`box-bridge config check` checks the file and prints the result. An unknown key, table or
`BOX_BRIDGE_…` variable is an error that names the nearest valid one.

Times are in seconds. Relative paths start at the directory of the file.
`BOX_BRIDGE_LOG` (`debug`, `info`, `warning`, `error`) and `BOX_BRIDGE_LOG_FORMAT` (`text`, `json`)
select what the Box logs to stderr.

[Connection and timing](connection.md) has the tables `[nats]` and `[timing]`. See also [a request's
configuration](request-config.md), [image patterns](images.md), and [how to configure a
host](../how-to/configure-a-host.md).
"""
_CONNECTION: Final = """\
# Connection and timing

These are the tables `[nats]` and `[timing]` of [the configuration](configuration.md). Gateways and
the verbs of the command line read the variables of `[nats]` as well.
"""


def pages() -> dict[str, str]:
    """The pages, by file name."""
    return {
        "configuration.md": _page(_INTRODUCTION, HOST),
        "connection.md": _page(_CONNECTION, CONNECTION),
    }


def _page(introduction: str, tables: dict[str, type[Struct]]) -> str:
    return "\n".join([introduction, *(_section(title, cls) for title, cls in tables.items())])


def _section(title: str, cls: type[Struct]) -> str:
    texts = attribute_docstrings(cls)
    variables = _VARIABLES.get(cls, {})
    head = ["key", "type", "default", "meaning", *(["variable"] if variables else [])]
    rows = []
    for info in fields(cls):
        row = [f"`{info.name}`", _type(info), _default(info), prose(texts[info.name])]
        if variables:
            row.append(f"`{variables[info.name]}`" if info.name in variables else "")
        rows.append(row)
    return f"## {title}\n\n{prose(inspect.getdoc(cls) or '')}\n\n{table(head, rows)}"


def attribute_docstrings(cls: type[Struct]) -> dict[str, str]:
    """The string literal under each field of `cls`, which Python itself does not keep."""
    [definition] = ast.parse(inspect.getsource(cls)).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for statement, following in zip(definition.body, definition.body[1:], strict=False):
        match statement, following:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                texts[name] = " ".join(text.split())
    return texts


def _default(info: FieldInfo) -> str:
    if info.default_factory is not NODEFAULT:
        value: Any = info.default_factory()
        return "see below" if isinstance(value, Struct) else f"`{_toml(value)}`"
    if info.default is None or info.default == "":
        return "–"
    return f"`{_toml(info.default)}`"


def _toml(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return msgspec.json.encode(value).decode()


def _type(info: FieldInfo) -> str:
    return _named(msgspec.inspect.type_info(info.type))


def _named(kind: msgspec.inspect.Type) -> str:
    names: dict[type[msgspec.inspect.Type], str] = {
        msgspec.inspect.BoolType: "boolean",
        msgspec.inspect.IntType: "integer",
        msgspec.inspect.FloatType: "number",
        msgspec.inspect.ListType: "strings",
        msgspec.inspect.DictType: "table of strings",
        msgspec.inspect.StructType: "table",
    }
    if isinstance(kind, msgspec.inspect.UnionType):
        return _named(kind.types[0])
    return names.get(type(kind), "string")
