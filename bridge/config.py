"""Configuration: one TOML file, the environment and flags, read once into frozen Structs.

A flag overrides the environment, which overrides the file. No other module reads the environment or
a context of the nats CLI. An unknown key is an error that names the nearest known one, because a
typo must not silently become a default. Every failure is a ConfigError.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import asdict, fields

from bridge.config_errors import explain, nearest
from bridge.errors import ConfigError
from bridge.nats_context import SECRET_FILES, expand_home, read_context, selected_context
from bridge.settings import (
    BoxConfig,
    Config,
    InstanceConfig,
    LogConfig,
    NatsConfig,
    NotifyConfig,
    ServiceConfig,
    Timing,
)
from bridge.subjects import is_name

_DEFAULT_FILE: Final = Path("box.toml")

# ── where values come from ───────────────────────────────────────────────────────────────

_TABLES: Final[dict[str, type[Struct]]] = {"box": BoxConfig, "nats": NatsConfig, "timing": Timing}

NATS_VARIABLES: Final = {
    "NATS_URL": "url",
    "NATS_CONTEXT": "context",
    "NATS_USER": "user",
    "NATS_PASSWORD": "password",
    "NATS_TOKEN": "token",
    "NATS_CREDS": "creds",
    "NATS_NKEY": "nkey",
    "NATS_CA": "ca",
    "NATS_CERT": "cert",
    "NATS_KEY": "key",
    "NATS_INBOX_PREFIX": "inbox_prefix",
    "NATS_JS_DOMAIN": "domain",
    "BOX_BRIDGE_PREFIX": "prefix",
    "BOX_BRIDGE_REPLICAS": "replicas",
}
BOX_VARIABLES: Final = {
    f"BOX_BRIDGE_{key.upper()}": key
    for key in (
        *("name", "address", "max_instances", "data_dir", "ports", "runtime", "metrics"),
        *("engine", "isolation", "on_exit"),
    )
}
_OTHER_VARIABLES: Final = ("BOX_BRIDGE_CONFIG", "BOX_BRIDGE_LOG", "BOX_BRIDGE_LOG_FORMAT")

Flags = Mapping[str, Mapping[str, Any]]
"""The values of flags, by the name of their table; None counts as not given."""

_UTF_16: Final = (b"\xff\xfe", b"\xfe\xff")
_FOREIGN: Final = (OSError, ValueError, RuntimeError, OverflowError, msgspec.MsgspecError)
"""What a wrong file, path or value can raise: any errno, text that is not UTF-8, a NUL byte, an
unknown home directory or nesting that is too deep (RuntimeError), JSON or a type that is wrong.
"""

T = TypeVar("T")


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    flags: Flags | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """The configuration from the file at `path`, `environ` and `flags`; the later one wins.

    Raises ConfigError, naming the place and the fix.
    """
    file = Path(_expanded(os.fspath(path), environ, str(path))) if path else None
    tables = _read(file) if file else {}
    with _mapped_errors("the working directory"):
        directory = file.resolve().parent if file else Path.cwd()
    given = _given(flags or {})
    _check_variables(environ)
    nats = load_nats(
        tables.get("nats", {}), flags=given.get("nats", {}), environ=environ, file=file
    )
    box_layers = [
        _anchored(
            _checked(BoxConfig, tables.get("box", {}), _place(file, "box")), directory, environ
        ),
        _from_environ(BoxConfig, BOX_VARIABLES, environ),
        given.get("box", {}),
    ]
    box = _overlaid(BoxConfig, [_at_home(layer, environ) for layer in box_layers], "[box]")
    timing = _checked_struct(Timing, tables.get("timing", {}), _place(file, "timing"))
    return Config(
        box=_named(box),
        nats=nats,
        timing=timing,
        services={
            name: _service_at_home(service, box.runtime, environ, f"[services.{name}]")
            for name, service in _services(tables, file).items()
        },
        directory=directory,
        environ=_inherited(environ),
    )


def find_file(given: Path | None, *, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The configuration file: the one given, else ``BOX_BRIDGE_CONFIG``, else box.toml here."""
    if given is not None:
        return given
    if named := environ.get("BOX_BRIDGE_CONFIG"):
        return Path(named)
    with _mapped_errors(str(_DEFAULT_FILE)):
        return _DEFAULT_FILE if _DEFAULT_FILE.exists() else None


def load_log(
    level: str | None = None, style: str | None = None, *, environ: Mapping[str, str] = os.environ
) -> LogConfig:
    """The log settings; arguments override ``BOX_BRIDGE_LOG`` and ``BOX_BRIDGE_LOG_FORMAT``."""
    return LogConfig(
        level=level or environ.get("BOX_BRIDGE_LOG") or "info",
        style=style or environ.get("BOX_BRIDGE_LOG_FORMAT") or "text",
    )


def load_notify(*, environ: Mapping[str, str] = os.environ) -> NotifyConfig:
    """The settings that the service manager gives this process: see sd_notify(3)."""
    address, text = environ.get("NOTIFY_SOCKET", ""), environ.get("WATCHDOG_USEC") or "0"
    interval = _number(text)
    if interval is None:
        raise ConfigError("WATCHDOG_USEC", f"{text[:40]!r} is not a number of microseconds")
    watched = environ.get("WATCHDOG_PID") or str(os.getpid())
    mine = bool(address) and watched == str(os.getpid())
    return NotifyConfig(address=address, watchdog=interval / 1e6 if mine else 0.0)


# Variables that a Box gives its instances, besides NATS_URL, NATS_CA and BOX_BRIDGE_PREFIX.
INSTANCE_ID: Final = "BOX_INSTANCE_ID"
SERVICE: Final = "BOX_SERVICE"
PORT: Final = "PORT"
HOST: Final = "BOX_HOST"
ADDRESS: Final = "BOX_ADDRESS"
METADATA: Final = "BOX_METADATA"
REGISTRATION: Final = "BOX_REGISTRATION"


def load_instance(*, environ: Mapping[str, str] = os.environ) -> InstanceConfig:
    """The variables that a Box gave this process, if a Box started it.

    Raises ConfigError for a malformed one. Without a Box, a malformed ``PORT`` is ignored: other
    programs set that variable, too.
    """
    text = environ.get(PORT) or "0"
    instance_id = environ.get(INSTANCE_ID, "")
    port = _number(text)
    if port is None or port > 65535:
        if instance_id:
            raise ConfigError(PORT, f"{text[:40]!r} is not a port")
        port = 0
    with _mapped_errors(METADATA, "must be a JSON object of strings: "):
        metadata = msgspec.json.decode(environ.get(METADATA) or "{}", type=dict[str, str])
    return InstanceConfig(
        instance_id=instance_id,
        service=environ.get(SERVICE, ""),
        host=environ.get(HOST, ""),
        address=environ.get(ADDRESS, ""),
        port=port,
        metadata=metadata,
        registered_by_box=bool(instance_id) and environ.get(REGISTRATION) == "box",
    )


def child_environment(
    instance: Mapping[str, str], *, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The environment of a program that this process starts as an instance."""
    return {**environ, **instance}


def load_nats(
    table: Mapping[str, Any] | None = None,
    *,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] = os.environ,
    file: Path | None = None,
) -> NatsConfig:
    """The connection settings alone, for a gateway or a command that needs no Box.

    A context counts as part of the layer that names it, beneath that layer's own values. Where no
    layer names a server or a context, the context that is selected in the nats CLI counts, beneath
    all; its name is then the `context` of the result. Paths in the table are relative to the file.
    """
    given = _checked(NatsConfig, table or {}, _place(file, "nats"))
    with _mapped_errors(str(file)):
        directory = file.resolve().parent if file else Path()
    from_file = _located(given, directory, environ)
    from_environ = _from_environ(NatsConfig, NATS_VARIABLES, environ)
    layers: list[Mapping[str, Any]] = []
    for layer in (
        from_file,
        _located(from_environ, Path(), environ),
        _located(_given({"nats": flags or {}})["nats"], Path(), environ),
    ):
        if context := layer.get("context"):
            layers.append(_context(str(context), environ))
        layers.append(layer)
    named = any("url" in layer or "context" in layer for layer in layers)
    if not named and (selected := selected_context(environ)):
        layers.insert(0, {**_context(selected, environ), "context": selected})
    return _overlaid(NatsConfig, layers, "[nats]")


def _context(name: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """The nats CLI's context `name`, each value checked."""
    place = f"context {name}"
    with _mapped_errors(place):
        settings = read_context(name, environ)
    return _checked(NatsConfig, settings, place)


def _located(
    table: Mapping[str, Any], directory: Path, environ: Mapping[str, str]
) -> dict[str, Any]:
    """`table` with its paths beneath `directory`, and ``~`` replaced."""
    paths = {
        key: str(directory / _expanded(table[key], environ, f"[nats] {key}"))
        for key in SECRET_FILES
        if table.get(key)
    }
    return {**table, **paths}


def _refuse_nul(value: object, place: str) -> None:
    """Raise ConfigError for a NUL character: no path, argument or variable can have one."""
    if isinstance(value, str) and "\0" in value:
        raise ConfigError(place, "a text cannot contain a NUL character")
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_nul(key, place)
            _refuse_nul(item, f"{place}.{key}")
    elif isinstance(value, list):
        for item in value:
            _refuse_nul(item, place)


def _read(file: Path) -> dict[str, Any]:
    with _mapped_errors(str(file)):
        text = file.read_bytes()
    if text.startswith(_UTF_16):
        raise ConfigError(str(file), "is UTF-16, as Windows may save it: save it as UTF-8")
    with _mapped_errors(str(file), "is not TOML: "):
        tables = tomllib.loads(text.decode("utf-8-sig"))  # some editors put a BOM at the start
    for key, table in tables.items():
        _refuse_nul(table, f"{file}: {key}")
        if key not in (*_TABLES, "services"):
            raise ConfigError(
                str(file), f"unknown table [{key}]{nearest(key, (*_TABLES, 'services'))}"
            )
        if not isinstance(table, dict):
            raise ConfigError(str(file), f"{key} must be a table: [{key}]")
    return tables


def _services(tables: Mapping[str, Any], file: Path | None) -> dict[str, ServiceConfig]:
    services: dict[str, ServiceConfig] = {}
    for name, table in tables.get("services", {}).items():
        place = _place(file, f"services.{name}")
        if not is_name(name):
            raise ConfigError(place, "a service name has 1 to 63 of a-z, 0-9 and '-'")
        services[name] = _checked_struct(ServiceConfig, table, place)
    return services


def _service_at_home(
    service: ServiceConfig, runtime: str, environ: Mapping[str, str], place: str
) -> ServiceConfig:
    """The service with a ``~`` replaced in what is a path on this host."""
    if runtime != "process":
        return service
    command = [_expanded(word, environ, f"{place} command") for word in service.command[:1]]
    return msgspec.structs.replace(
        service,
        command=[*command, *service.command[1:]],
        cwd=_expanded(service.cwd, environ, f"{place} cwd"),
    )


def _expanded(path: str, environ: Mapping[str, str], place: str) -> str:
    """`path` with its ``~`` replaced."""
    with _mapped_errors(place):
        return expand_home(path, environ)


def _place(file: Path | None, table: str) -> str:
    return f"{file or 'configuration'}: [{table}]"


def _given(flags: Flags) -> dict[str, dict[str, Any]]:
    return {
        table: {key: value for key, value in values.items() if value is not None}
        for table, values in flags.items()
    }


def _from_environ(
    cls: type[Struct], variables: Mapping[str, str], environ: Mapping[str, str]
) -> dict[str, Any]:
    """The values in the environment, each converted to the type of its key."""
    types = {item.name: item.type for item in fields(cls)}
    given = {name: key for name, key in variables.items() if environ.get(name)}
    return {
        key: _checked_struct(types[key], environ[name], name, strict=False)
        for name, key in given.items()
    }


def _inherited(environ: Mapping[str, str]) -> dict[str, str]:
    ours = ("NATS_", "BOX_", "NOTIFY_SOCKET", "WATCHDOG_")
    return {name: value for name, value in environ.items() if not name.startswith(ours)}


def _check_variables(environ: Mapping[str, str]) -> None:
    known = (*BOX_VARIABLES, *NATS_VARIABLES, *_OTHER_VARIABLES)
    for name in environ:
        if name.startswith("BOX_BRIDGE_") and name not in known:
            raise ConfigError(name, f"no such variable{nearest(name, known)}")


def _anchored(table: dict[str, Any], directory: Path, environ: Mapping[str, str]) -> dict[str, Any]:
    """The data_dir is relative to the file, not to where the Box was started."""
    given = _expanded(table.get("data_dir", BoxConfig().data_dir), environ, "[box] data_dir")
    return {**table, "data_dir": str(directory / given)}


def _at_home(table: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """``[box]`` with its paths' ``~`` replaced, which no shell does in a file."""
    paths = {
        key: _expanded(table[key], environ, f"[box] {key}")
        for key in ("data_dir", "engine")
        if isinstance(table.get(key), str)
    }
    return {**table, **paths}


def _named(box: BoxConfig) -> BoxConfig:
    name = box.name or socket.gethostname().partition(".")[0].lower()
    if not is_name(name):
        source = "the host's name" if not box.name else "name"
        raise ConfigError(
            "[box] name",
            f'{source} {name!r} cannot be a subject token: set name = "…" of a-z, 0-9 and "-"',
        )
    if "\0" in box.data_dir:
        raise ConfigError("[box] data_dir", "a path cannot contain a NUL character")
    with _mapped_errors("[box] data_dir"):
        return msgspec.structs.replace(box, name=name, data_dir=str(Path(box.data_dir).absolute()))


# ── checking ─────────────────────────────────────────────────────────────────────────────


def _checked(cls: type[Struct], table: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The keys that `table` sets, after the whole table was checked."""
    struct = _checked_struct(cls, table, place)
    return {key: value for key, value in asdict(struct).items() if key in table}


def _checked_struct(cls: Any, table: Any, place: str, *, strict: bool = True) -> Any:
    with _mapped_errors(place):
        try:
            return msgspec.convert(table, cls, strict=strict)
        except msgspec.ValidationError as exc:
            raise explain(cls, str(exc), place, table) from exc


def _overlaid(cls: type[T], layers: Sequence[Mapping[str, Any]], place: str) -> T:
    merged: dict[str, Any] = {}
    for layer in layers:
        merged |= layer
    checked: T = _checked_struct(cls, merged, place)
    return checked


@contextlib.contextmanager
def _mapped_errors(where: str, problem: str = "") -> Iterator[None]:
    """Raise ConfigError for a foreign exception of the block."""
    try:
        yield
    except _FOREIGN as exc:
        reason = str(getattr(exc, "strerror", None) or exc or type(exc).__name__)
        cannot = "cannot be read: " if isinstance(exc, OSError) and not problem else ""
        raise ConfigError(where, f"{problem or cannot}{reason}") from exc


def _number(text: str) -> int | None:
    """The number that `text` writes in at most 18 digits; None if it does not."""
    return int(text) if text.isdecimal() and len(text) <= 18 else None
