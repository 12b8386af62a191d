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
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta, Struct, field
from msgspec.structs import asdict, fields

from bridge.errors import ConfigError
from bridge.protocol import U8, U32
from bridge.subjects import DEFAULT_PREFIX, Subjects, is_name

DEFAULT_URL: Final = "nats://127.0.0.1:4222"

Seconds = Annotated[float, Meta(ge=0)]
Interval = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]


class Probe(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a Box finds out that an instance is ready, and goes on being healthy.

    `http` is a path: any answer below 400 will do. Without it, a TCP connection that is
    accepted will do. After Ready it is repeated every `interval` seconds; `failures` in a row
    make the instance unhealthy, one success makes it healthy again.
    """

    http: str | None = None
    tcp: bool = False
    interval: Interval = 5.0
    timeout: Interval = 2.0
    failures: Count = 3

    def __post_init__(self) -> None:
        if self.http is not None and self.tcp:
            raise ValueError('choose one of http = "/path" and tcp = true')
        if self.http is not None and not self.http.startswith("/"):
            raise ValueError(f"http = {self.http!r} must be a path that starts with '/'")


class ServiceConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[services.<name>]``: how one instance of a service is made.

    `{port}` in `command` becomes the instance's port. Times are in seconds. `vcpus`,
    `memory_mib`, `env` and `port_map` are the defaults that a request's config overrides.
    """

    command: Annotated[list[str], Meta(min_length=1)]
    cwd: str = ""
    env: dict[str, str] = field(default_factory=dict)
    vcpus: U8 | None = None
    memory_mib: U32 | None = None
    port_map: list[str] = field(default_factory=list)
    probe: Probe = field(default_factory=Probe)
    metadata: dict[str, str] = field(default_factory=dict)
    start_timeout: Interval = 60.0
    deregister_delay: Seconds = 1.0
    drain_timeout: Seconds = 30.0
    stop_grace: Seconds = 10.0

    def __post_init__(self) -> None:
        if sum(len(key) + len(value) for key, value in self.metadata.items()) > 16 * 1024:
            raise ValueError("metadata is larger than 16 KiB")


class BoxConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[box]``: this host. `ports` is the range from which instances get theirs."""

    name: str = ""
    address: str = "127.0.0.1"
    max_instances: Annotated[int, Meta(ge=1, le=100_000)] = 20
    data_dir: str = "data"
    ports: str = "20000-21999"
    runtime: str = "process"
    labels: dict[str, str] = field(default_factory=dict)
    metrics: str = ""

    def __post_init__(self) -> None:
        if self.runtime != "process":
            raise ValueError(f'runtime = {self.runtime!r} is not known: use "process"')
        if len(self.port_range) < self.max_instances:
            raise ValueError(
                f"ports = {self.ports!r} holds {len(self.port_range)} ports, "
                f"fewer than max_instances = {self.max_instances}"
            )
        if self.metrics and re.fullmatch(r".+:\d{1,5}", self.metrics) is None:
            raise ValueError(f'metrics = {self.metrics!r} must be "host:port"')

    @property
    def port_range(self) -> range:
        """The ports of `ports`; raises ValueError if it is not ``first-last``."""
        match = re.fullmatch(r"(\d{1,5})-(\d{1,5})", self.ports)
        first, last = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 1 <= first <= last <= 65535:
            raise ValueError(f'ports = {self.ports!r} must be "first-last" within 1 to 65535')
        return range(first, last + 1)


class NatsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[nats]``: the connection, under the names that NATS users know, and the fleet's names.

    `url` may list several servers, separated by commas. `reply_prefixes` are inboxes beside
    `_INBOX.` and `_R_.` to which a Box may reply. `replicas` is how many servers keep each
    stream and bucket.
    """

    url: str = DEFAULT_URL
    context: str = ""
    user: str = ""
    password: str = ""
    token: str = ""
    creds: str = ""
    nkey: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""
    tls_first: bool = False
    inbox_prefix: str = "_INBOX"
    domain: str = ""
    prefix: str = DEFAULT_PREFIX
    replicas: Annotated[int, Meta(ge=1, le=5)] = 1
    reply_prefixes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not is_name(self.prefix):
            raise ValueError(f"prefix = {self.prefix!r} is not a name of a-z, 0-9 and '-'")

    @property
    def urls(self) -> list[str]:
        return [url.strip() for url in self.url.split(",") if url.strip()]

    @property
    def subjects(self) -> Subjects:
        return Subjects(prefix=self.prefix)


class Timing(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[timing]``: the protocol's times, in seconds. Tests shorten them; leave them alone.

    All Boxes of a fleet must agree on `lease` and `registration_ttl` (WIRE: 10 s and 30 s).
    """

    lease: Count = 10
    heartbeat: Interval = 3.0
    sample: Interval = 1.0
    idle_samples: Count = 10
    registration_renew: Interval = 10.0
    registration_ttl: Count = 30
    decide_timeout: Interval = 2.0
    backoff_first: Interval = 1.0
    backoff_max: Interval = 60.0
    backoff_reset: Interval = 60.0


class Config(Struct, frozen=True, kw_only=True):
    """Everything a Box is told.

    `directory` is where relative paths of services start. `environ` is what instances inherit:
    the environment without the credentials of this program.
    """

    box: BoxConfig = field(default_factory=BoxConfig)
    nats: NatsConfig = field(default_factory=NatsConfig)
    timing: Timing = field(default_factory=Timing)
    services: dict[str, ServiceConfig] = field(default_factory=dict)
    directory: Path = field(default_factory=Path.cwd)
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def data_dir(self) -> Path:
        return Path(self.box.data_dir)


# ── where values come from ───────────────────────────────────────────────────────────────

_TABLES: Final[dict[str, type[Struct]]] = {"box": BoxConfig, "nats": NatsConfig, "timing": Timing}

_NATS_VARIABLES: Final = {
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
_BOX_VARIABLES: Final = {
    f"BOX_BRIDGE_{key.upper()}": key
    for key in ("name", "address", "max_instances", "data_dir", "ports", "runtime", "metrics")
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

    `flags` maps a table's name to its values; None values are taken as not given. Without a
    path, ``BOX_BRIDGE_CONFIG`` names the file, and without that there is none. Raises
    ConfigError, naming the place and the cure.
    """
    chosen = path or environ.get("BOX_BRIDGE_CONFIG")
    file = Path(chosen) if chosen else None
    tables = _read(file) if file else {}
    directory = file.resolve().parent if file else Path.cwd()
    given = _given(flags or {})
    _check_variables(environ)
    nats = load_nats(
        tables.get("nats", {}), flags=given.get("nats", {}), environ=environ, file=file
    )
    box_layers = [
        _anchored(_checked(BoxConfig, tables.get("box", {}), _place(file, "box")), directory),
        _from_environ(BoxConfig, _BOX_VARIABLES, environ),
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
        _from_environ(NatsConfig, _NATS_VARIABLES, environ),
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
    known = (*_BOX_VARIABLES, *_NATS_VARIABLES, *_OTHER_VARIABLES)
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
    """A data_dir of the file is relative to the file, not to where the Box was started."""
    if "data_dir" in table:
        table["data_dir"] = str(directory / Path(table["data_dir"]).expanduser())
    return table


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
