"""Configuration: one TOML file, the environment, and flags, read once into frozen Structs.

The environment beats the file, a flag beats both. This is the only module that reads the
environment or a NATS CLI context; everything else is handed a `Config`. A key nobody knows is
an error that names the nearest right one: a typo must not become a default.
"""

from __future__ import annotations

import difflib
import os
import re
import socket
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import asdict, fields

from bridge.errors import ConfigError
from bridge.settings import (
    BoxConfig,
    Config,
    InstanceConfig,
    LogConfig,
    NatsConfig,
    NotifyConfig,
    Probe,
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

# The nats CLI's context files have these keys; "url" and the like are named alike.
_CONTEXT_KEYS: Final = {
    "url": "url",
    "user": "user",
    "password": "password",
    "token": "token",
    "creds": "creds",
    "nkey": "nkey",
    "ca": "ca",
    "cert": "cert",
    "key": "key",
    "tls_first": "tls_first",
    "inbox_prefix": "inbox_prefix",
    "jetstream_domain": "domain",
}

Flags = Mapping[str, Mapping[str, Any]]
T = TypeVar("T")


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    flags: Flags | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """The configuration from the file at `path`, `environ` and `flags`, later ones winning.

    `flags` maps a table's name to its values; None values are taken as not given. Raises
    ConfigError, naming the place and the cure.
    """
    file = Path(path) if path else None
    tables = _read(file) if file else {}
    directory = file.resolve().parent if file else Path.cwd()
    given = _given(flags or {})
    _check_variables(environ)
    nats = load_nats(
        tables.get("nats", {}), flags=given.get("nats", {}), environ=environ, file=file
    )
    box_layers = [
        _anchored(_checked(BoxConfig, tables.get("box", {}), _place(file, "box")), directory),
        _from_environ(BoxConfig, BOX_VARIABLES, environ),
        given.get("box", {}),
    ]
    box = _overlaid(BoxConfig, box_layers, "[box]")
    timing = _checked_struct(Timing, tables.get("timing", {}), _place(file, "timing"))
    return Config(
        box=_named(box),
        nats=nats,
        timing=timing,
        services=_services(tables, file),
        directory=directory,
        environ=_inherited(environ),
    )


def find_file(given: Path | None, *, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The configuration file: the one given, else ``BOX_BRIDGE_CONFIG``, else box.toml here."""
    if given is not None:
        return given
    if named := environ.get("BOX_BRIDGE_CONFIG"):
        return Path(named)
    return _DEFAULT_FILE if _DEFAULT_FILE.exists() else None


def load_log(
    level: str | None = None, style: str | None = None, *, environ: Mapping[str, str] = os.environ
) -> LogConfig:
    """The log settings; arguments beat ``BOX_BRIDGE_LOG`` and ``BOX_BRIDGE_LOG_FORMAT``."""
    return LogConfig(
        level=level or environ.get("BOX_BRIDGE_LOG") or "info",
        style=style or environ.get("BOX_BRIDGE_LOG_FORMAT") or "text",
    )


def load_notify(*, environ: Mapping[str, str] = os.environ) -> NotifyConfig:
    """What ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID`` say: sd_notify(3)."""
    address, interval = environ.get("NOTIFY_SOCKET", ""), environ.get("WATCHDOG_USEC") or "0"
    if not interval.isdecimal():
        raise ConfigError("WATCHDOG_USEC", f"{interval!r} is not a number of microseconds")
    watched = environ.get("WATCHDOG_PID") or str(os.getpid())
    mine = bool(address) and watched == str(os.getpid())
    return NotifyConfig(address=address, watchdog=int(interval) / 1e6 if mine else 0.0)


# What a Box hands its instances, beside NATS_URL, NATS_CA and BOX_BRIDGE_PREFIX.
INSTANCE_ID: Final = "BOX_INSTANCE_ID"
SERVICE: Final = "BOX_SERVICE"
PORT: Final = "PORT"
HOST: Final = "BOX_HOST"
ADDRESS: Final = "BOX_ADDRESS"
METADATA: Final = "BOX_METADATA"
REGISTRATION: Final = "BOX_REGISTRATION"


def load_instance(*, environ: Mapping[str, str] = os.environ) -> InstanceConfig:
    """What the Box that made this process has handed it. Raises ConfigError for what is no such
    thing; a ``PORT`` that is no number counts only where there is a Box.
    """
    port = environ.get(PORT) or "0"
    instance_id = environ.get(INSTANCE_ID, "")
    if not (port.isdecimal() and int(port) <= 65535):
        if instance_id:
            raise ConfigError(PORT, f"{port!r} is not a port")
        port = "0"
    try:
        metadata = msgspec.json.decode(environ.get(METADATA) or "{}", type=dict[str, str])
    except msgspec.MsgspecError as exc:
        raise ConfigError(METADATA, f"must be a JSON object of strings: {exc}") from exc
    return InstanceConfig(
        instance_id=instance_id,
        service=environ.get(SERVICE, ""),
        host=environ.get(HOST, ""),
        address=environ.get(ADDRESS, ""),
        port=int(port),
        metadata=metadata,
        registered_by_box=bool(instance_id) and environ.get(REGISTRATION) == "box",
    )


def child_environment(
    instance: Mapping[str, str], *, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The environment of a program that this process runs as an instance."""
    return {**environ, **instance}


def load_nats(
    table: Mapping[str, Any] | None = None,
    *,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] = os.environ,
    file: Path | None = None,
) -> NatsConfig:
    """The connection settings alone, for a gateway or a CLI verb that needs no Box.

    A context counts as part of the layer that names it, beneath that layer's own values.
    """
    layers: list[Mapping[str, Any]] = []
    for layer in (
        _checked(NatsConfig, table or {}, _place(file, "nats")),
        _from_environ(NatsConfig, NATS_VARIABLES, environ),
        _given({"nats": flags or {}})["nats"],
    ):
        if context := layer.get("context"):
            layers.append(_context(str(context), environ))
        layers.append(layer)
    return _overlaid(NatsConfig, layers, "[nats]")


def _read(file: Path) -> dict[str, Any]:
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(str(file), f"cannot be read: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(str(file), f"is not TOML: {exc}") from exc
    for key, table in tables.items():
        if key not in (*_TABLES, "services"):
            raise ConfigError(
                str(file), f"unknown table [{key}]{_nearest(key, (*_TABLES, 'services'))}"
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
    """The values that the environment gives, each known to be of its key's type."""
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
            raise ConfigError(name, f"no such variable{_nearest(name, known)}")


def _context(name: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """The nats CLI's context `name`, from where the nats CLI keeps them."""
    home = environ.get("XDG_CONFIG_HOME") or str(
        Path(environ.get("HOME", "~")).expanduser() / ".config"
    )
    folder = Path(home) / "nats" / "context"
    file = folder / f"{name}.json"
    try:
        values = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except OSError as exc:
        there = sorted(entry.stem for entry in folder.glob("*.json"))
        raise ConfigError(
            f"context {name}",
            f"{file} cannot be read; contexts there: {', '.join(there) or 'none'}",
        ) from exc
    except msgspec.MsgspecError as exc:
        raise ConfigError(f"context {name}", f"{file} is not a context: {exc}") from exc
    return {ours: values[theirs] for theirs, ours in _CONTEXT_KEYS.items() if values.get(theirs)}


def _anchored(table: dict[str, Any], directory: Path) -> dict[str, Any]:
    """The data_dir is relative to the file, not to where the Box was started."""
    given = Path(table.get("data_dir", BoxConfig().data_dir)).expanduser()
    return {**table, "data_dir": str(directory / given)}


def _named(box: BoxConfig) -> BoxConfig:
    name = box.name or socket.gethostname().partition(".")[0].lower()
    if not is_name(name):
        source = "the host's name" if not box.name else "name"
        raise ConfigError(
            "[box] name",
            f'{source} {name!r} cannot be a subject token: set name = "…" of a-z, 0-9 and "-"',
        )
    return msgspec.structs.replace(box, name=name, data_dir=str(Path(box.data_dir).absolute()))


# ── checking ─────────────────────────────────────────────────────────────────────────────


def _checked(cls: type[Struct], table: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The keys that `table` gives, once the whole is known to be right."""
    struct = _checked_struct(cls, table, place)
    return {key: value for key, value in asdict(struct).items() if key in table}


def _checked_struct(cls: Any, table: Any, place: str, *, strict: bool = True) -> Any:
    try:
        return msgspec.convert(table, cls, strict=strict)
    except msgspec.ValidationError as exc:
        raise _explained(cls, str(exc), place) from exc


def _overlaid(cls: type[T], layers: Sequence[Mapping[str, Any]], place: str) -> T:
    merged: dict[str, Any] = {}
    for layer in layers:
        merged |= layer
    checked: T = _checked_struct(cls, merged, place)
    return checked


_UNKNOWN: Final = re.compile(r"^Object contains unknown field `([^`]+)`")
_MISSING: Final = re.compile(r"^Object missing required field `([^`]+)`")
_AT: Final = re.compile(r" - at `\$\.?([^`]*)`$")


def _explained(cls: Any, text: str, place: str) -> ConfigError:
    at = _AT.search(text)
    path = at[1] if at else ""
    problem = text[: at.start()] if at else text
    where = f"{place} {path}".strip()
    if unknown := _UNKNOWN.match(problem):
        known = [item.name for item in fields(Probe if path == "probe" else cls)]
        return ConfigError(where, f"unknown key `{unknown[1]}`{_nearest(unknown[1], known)}")
    if missing := _MISSING.match(problem):
        return ConfigError(where, f"`{missing[1]}` is missing")
    return ConfigError(where, problem[:1].lower() + problem[1:])


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, known := list(known), n=1, cutoff=0.5)
    return f"; did you mean `{close[0]}`?" if close else f"; known: {', '.join(sorted(known))}"
