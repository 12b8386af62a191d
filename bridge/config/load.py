"""The whole configuration of a Box: its file, the environment and flags."""

from __future__ import annotations

import os
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from bridge.config.explanation import nearest
from bridge.config.layers import (
    Flags,
    checked,
    checked_struct,
    expanded,
    from_environ,
    given_flags,
    mapped_errors,
    overlay,
    place_of,
)
from bridge.config.nats import NATS_VARIABLES, load_nats
from bridge.errors import ConfigError
from bridge.settings import BoxConfig, Config, NatsConfig, Secret, ServiceConfig, Timing
from bridge.subjects import is_name

_DEFAULT_FILE: Final = Path("box.toml")
_TABLES: Final[dict[str, type[Struct]]] = {"box": BoxConfig, "nats": NatsConfig, "timing": Timing}
BOX_VARIABLES: Final = {
    f"BOX_BRIDGE_{key.upper()}": key
    for key in (
        *("name", "address", "max_instances", "data_dir", "ports", "runtime", "metrics"),
        *("engine", "isolation", "on_exit"),
    )
}
_OTHER_VARIABLES: Final = ("BOX_BRIDGE_CONFIG", "BOX_BRIDGE_LOG", "BOX_BRIDGE_LOG_FORMAT")
_MORE: Final = "conf.d/*.toml"
_UTF_16: Final = (b"\xff\xfe", b"\xfe\xff")


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    flags: Flags | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """The configuration from the file at `path`, `environ` and `flags`; the later one wins. Files
    in ``conf.d`` beside it add services.

    Raises ConfigError, naming the place and the fix.
    """
    file = Path(expanded(os.fspath(path), environ, str(path))) if path else None
    tables, places = _read_all(file) if file else ({}, {})
    with mapped_errors("the working directory"):
        directory = file.resolve().parent if file else Path.cwd()
    given = given_flags(flags or {})
    _check_variables(environ)
    nats = load_nats(
        tables.get("nats", {}), flags=given.get("nats", {}), environ=environ, file=file
    )
    box_layers = [
        _anchored(
            checked(BoxConfig, tables.get("box", {}), place_of(file, "box")), directory, environ
        ),
        from_environ(BoxConfig, BOX_VARIABLES, environ),
        given.get("box", {}),
    ]
    box = overlay(BoxConfig, [_at_home(layer, environ) for layer in box_layers], "[box]")
    timing = checked_struct(Timing, tables.get("timing", {}), place_of(file, "timing"))
    return Config(
        box=_named(box),
        nats=nats,
        timing=timing,
        services={
            name: _service_at_home(
                _anchored_secrets(service, directory, environ, f"[services.{name}]"),
                box.runtime,
                environ,
                f"[services.{name}]",
            )
            for name, service in _services(tables, places).items()
        },
        directory=directory,
        environ=_inherited(environ),
        credentials=environ.get("CREDENTIALS_DIRECTORY", ""),
    )


def find_file(given: Path | None, *, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The configuration file: the one given, else ``BOX_BRIDGE_CONFIG``, else box.toml here."""
    if given is not None:
        return given
    if named := environ.get("BOX_BRIDGE_CONFIG"):
        return Path(named)
    with mapped_errors(str(_DEFAULT_FILE)):
        return _DEFAULT_FILE if _DEFAULT_FILE.exists() else None


def _read(file: Path) -> dict[str, Any]:
    with mapped_errors(str(file)):
        text = file.read_bytes()
    if text.startswith(_UTF_16):
        raise ConfigError(str(file), "is UTF-16, as Windows may save it: save it as UTF-8")
    with mapped_errors(str(file), "is not TOML: "):
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


def _read_all(file: Path) -> tuple[dict[str, Any], dict[str, Path]]:
    """The tables of `file`, with the services of ``conf.d/*.toml`` beside it; and the file of each
    service.
    """
    tables = _read(file)
    places = dict.fromkeys(tables.get("services", {}), file)
    with mapped_errors(str(file.parent / _MORE)):
        more = sorted(file.parent.glob(_MORE))
    for added in more:
        services = _read(added)
        if others := services.keys() - {"services"}:
            raise ConfigError(
                str(added), f"[{min(others)}] belongs into {file}: here are only [services.<name>]"
            )
        for name, table in services.get("services", {}).items():
            if name in places:
                raise ConfigError(str(added), f"[services.{name}] is in {places[name]}, too")
            places[name] = added
            tables.setdefault("services", {})[name] = table
    return tables, places


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


def _services(tables: Mapping[str, Any], files: Mapping[str, Path]) -> dict[str, ServiceConfig]:
    services: dict[str, ServiceConfig] = {}
    for name, table in tables.get("services", {}).items():
        place = place_of(files.get(name), f"services.{name}")
        if not is_name(name):
            raise ConfigError(place, "a service name has 1 to 63 of a-z, 0-9 and '-'")
        services[name] = checked_struct(ServiceConfig, table, place)
    return services


def _service_at_home(
    service: ServiceConfig, runtime: str, environ: Mapping[str, str], place: str
) -> ServiceConfig:
    """The service with a ``~`` replaced in what is a path on this host."""
    if runtime != "process":
        return service
    command = [expanded(word, environ, f"{place} command") for word in service.command[:1]]
    return msgspec.structs.replace(
        service,
        command=[*command, *service.command[1:]],
        cwd=expanded(service.cwd, environ, f"{place} cwd"),
    )


def _anchored_secrets(
    service: ServiceConfig, directory: Path, environ: Mapping[str, str], place: str
) -> ServiceConfig:
    """The service with absolute paths of its secrets: they start at the file."""
    env = {
        name: Secret(file=str(directory / expanded(value.file, environ, f"{place} env.{name}")))
        if isinstance(value, Secret) and value.file
        else value
        for name, value in service.env.items()
    }
    return msgspec.structs.replace(service, env=env)


def _anchored(table: dict[str, Any], directory: Path, environ: Mapping[str, str]) -> dict[str, Any]:
    """The data_dir is relative to the file, not to where the Box was started."""
    given = expanded(table.get("data_dir", BoxConfig().data_dir), environ, "[box] data_dir")
    return {**table, "data_dir": str(directory / given)}


def _at_home(table: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """``[box]`` with its paths' ``~`` replaced, which no shell does in a file."""
    paths = {
        key: expanded(table[key], environ, f"[box] {key}")
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
    with mapped_errors("[box] data_dir"):
        return msgspec.structs.replace(box, name=name, data_dir=str(Path(box.data_dir).absolute()))


def _inherited(environ: Mapping[str, str]) -> dict[str, str]:
    ours = ("NATS_", "BOX_", "NOTIFY_SOCKET", "WATCHDOG_")
    return {name: value for name, value in environ.items() if not name.startswith(ours)}


def _check_variables(environ: Mapping[str, str]) -> None:
    known = (*BOX_VARIABLES, *NATS_VARIABLES, *_OTHER_VARIABLES)
    for name in environ:
        if name.startswith("BOX_BRIDGE_") and name not in known:
            raise ConfigError(name, f"no such variable{nearest(name, known)}")
