"""Contexts of the `nats` CLI: named connection settings, and the one that is selected.

Each key of a context is honoured, or ignored because it is for the CLI's display alone, or refused
by its name: a context that connects elsewhere, or as somebody else, must not seem to work.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from bridge.errors import ConfigError
from bridge.private_files import make_private, make_private_directory
from bridge.subjects import is_name

SECRET_FILES: Final = ("creds", "nkey", "ca", "cert", "key")
"""The settings that are paths, of a context and of ``[nats]``."""

_HONOURED: Final = {
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
    "request_info": "request_info",
}
_DISPLAY: Final = ("name", "description", "color_scheme", "jetstream_event_prefix")
_API_PREFIX: Final = "jetstream_api_prefix"
_WINDOWS: Final = "box-bridge runs on Linux; use cert, key and ca"
_REFUSED: Final = {
    "nsc": "write the credentials to a file with `nsc generate creds`, and set creds",
    "user_jwt": "put the JWT and its seed into a credentials file, and set creds",
    "user_seed": "put the JWT and its seed into a credentials file, and set creds",
    "socks_proxy": "box-bridge connects directly; use an address that it can reach",
    "windows_cert_store": _WINDOWS,
    "windows_cert_match": _WINDOWS,
    "windows_cert_match_by": _WINDOWS,
    "windows_ca_certs_match": _WINDOWS,
}
_DOMAIN: Final = re.compile(r"\$JS\.([^\s.*>]+)\.API")
_OURS: Final = "the server of `box-bridge up`"  # the description of a context that `up` made
_BOM: Final = b"\xef\xbb\xbf"  # some editors put it at the start of a file
_SCHEME: Final = re.compile(r"([a-z]+):(//)?", re.IGNORECASE)


def read_context(name: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """The settings of the context `name`, or of the context in the file `name` if that is an
    absolute path, under the names of ``[nats]``. Raises ConfigError.

    Relative paths in a file that is named by its path start at the file's directory: the files may
    be moved together.
    """
    place = f"context {name}"
    file = _file(name, environ)
    try:
        values = msgspec.json.decode(file.read_bytes().removeprefix(_BOM), type=dict[str, Any])
    except OSError as exc:
        there = sorted({entry.stem for folder in _folders(environ) for entry in _contexts(folder)})
        raise ConfigError(
            place, f"{file} cannot be read; contexts there: {', '.join(there) or 'none'}"
        ) from exc
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise ConfigError(place, f"{file} is not a context: {exc}") from exc
    values = {key: value for key, value in values.items() if value}
    settings = {_HONOURED[key]: values[key] for key in _HONOURED if key in values}
    if prefix := values.get(_API_PREFIX):
        settings |= _domain_of(prefix, settings, place)
    for key in values:
        if key not in (*_HONOURED, *_DISPLAY, _API_PREFIX):
            cure = _REFUSED.get(key, "box-bridge does not know it; give -s and the credentials")
            raise ConfigError(f"{place} {key}", f"is not supported: {cure}")
    for key in SECRET_FILES:
        if isinstance(given := settings.get(key), str):
            settings[key] = _path(given, environ, f"{place} {key}")
            if Path(name).is_absolute():
                settings[key] = str(file.parent / settings[key])
    return settings


def selected_context(environ: Mapping[str, str]) -> str:
    """The name of the context that ``nats context select`` has chosen, "" if there is none."""
    for folder in _folders(environ):
        try:
            return (folder / "context.txt").read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError):
            continue
    return ""


def check_context(name: str, environ: Mapping[str, str] = os.environ) -> Path:
    """The file in which `write_context` writes. Raises ConfigError if somebody else has made it, or
    for an invalid name.
    """
    if not is_name(name):
        raise ConfigError("--context", f"{name!r} is not a name of a-z, 0-9 and '-'")
    file = _file(name, environ)
    try:
        found = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        return file
    except (OSError, msgspec.MsgspecError) as exc:
        raise ConfigError("--context", f"{file} cannot be replaced: {exc}") from exc
    if found.get("description") != _OURS:
        raise ConfigError("--context", f"{file} exists: choose another name, or delete the file")
    return file


def write_context(name: str, url: str, key: Path, environ: Mapping[str, str] = os.environ) -> None:
    """Write the context `name` of the nats CLI for `url` and the seed in the file `key`. Raises
    ConfigError.
    """
    file = check_context(name, environ)
    context = {"description": _OURS, "url": url, "nkey": str(key)}
    try:
        make_private_directory(file.parent)
        make_private(file, empty=True)
        file.write_bytes(msgspec.json.format(msgspec.json.encode(context)) + b"\n")
    except OSError as exc:
        raise ConfigError("--context", f"{file} cannot be written: {exc.strerror}") from exc


def expand_home(path: str, environ: Mapping[str, str]) -> str:
    """`path` with the home directory in place of a ``~`` or ``~name`` at its start.

    Raises RuntimeError if there is no user of that name.
    """
    if path == "~" or path.startswith("~/"):
        return (environ.get("HOME") or account_home()) + path[1:]
    return str(Path(path).expanduser()) if path.startswith("~") else path


def account_home() -> str:
    """The home directory of this process's user, as the system's accounts have it."""
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return "/"


def _folders(environ: Mapping[str, str]) -> Iterator[Path]:
    """Where contexts may be, best first. The `nats` CLI looks in the account's home, whatever HOME
    is.
    """
    if configured := environ.get("XDG_CONFIG_HOME"):
        yield Path(configured) / "nats"
        return
    homes = dict.fromkeys((environ.get("HOME") or account_home(), account_home()))
    yield from (Path(home) / ".config" / "nats" for home in homes)


def _contexts(folder: Path) -> list[Path]:
    try:
        return list((folder / "context").glob("*.json"))
    except OSError:
        return []


def _file(name: str, environ: Mapping[str, str]) -> Path:
    if Path(name).is_absolute():
        return Path(name)
    if "/" in name or ".." in name:
        raise ConfigError(f"context {name}", "must be a name, or the absolute path of a file")
    files = [folder / "context" / f"{name}.json" for folder in _folders(environ)]
    return next(filter(os.path.exists, files), files[0])


def _domain_of(prefix: Any, settings: Mapping[str, Any], place: str) -> dict[str, str]:
    """The domain of an API prefix ``$JS.<domain>.API``; no other prefix is supported."""
    if prefix in ("$JS.API", f"$JS.{settings.get('domain')}.API"):
        return {}
    found = _DOMAIN.fullmatch(str(prefix))
    if found is None or "domain" in settings:
        raise ConfigError(
            f"{place} {_API_PREFIX}",
            f"{prefix!r} is not supported: only $JS.<domain>.API is, as jetstream_domain has it",
        )
    return {"domain": found[1]}


def _path(value: str, environ: Mapping[str, str], place: str) -> str:
    """A path as the `nats` CLI reads it: ``$VARIABLE``, ``~`` and ``file://`` are replaced."""
    expanded = re.sub(
        r"\$(?:\{(\w+)\}|(\w+))", lambda found: environ.get(found[1] or found[2], ""), value
    )
    scheme = _SCHEME.match(expanded)
    if scheme is None:
        return expand_home(expanded, environ)
    if scheme[1].lower() != "file":
        raise ConfigError(place, f"{scheme[0]}… is not supported: name a file")
    return expanded[scheme.end() :]
