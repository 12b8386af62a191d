"""The credentials and certificates of a connection, as arguments of nats-py's `connect`.

Files are read and checked here, once for each connection. nats-py would read them while it
connects: it loops forever over a credentials file without a JWT, and stops reconnecting for good
when a file is invalid, as a file is for a moment while it is replaced.
"""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Any, Final

from nats.aio.client import RawCredentials

from bridge.errors import ConfigError
from bridge.settings import NatsConfig

_JWT: Final = re.compile(r"BEGIN NATS USER JWT-+\n[\w.-]+\n")
_SEED: Final = re.compile(r"BEGIN USER NKEY SEED-+\n(\w+)\n")


def credentials(settings: NatsConfig) -> dict[str, Any]:
    """The arguments for nats-py's `connect`. Raises ConfigError for an unusable file."""
    given: dict[str, Any] = {
        "user": settings.user,
        "password": settings.password,
        "token": settings.token,
        "tls_handshake_first": settings.tls_first,
    }
    if settings.creds:
        given["user_credentials"] = _creds("creds", _read("creds", settings.creds))
    if settings.nkey:
        given["nkeys_seed_str"] = _seed("nkey", _read("nkey", settings.nkey).strip())
    if settings.ca or settings.cert or settings.tls_first:
        try:
            context = ssl.create_default_context(cafile=settings.ca or None)
            if settings.cert:
                context.load_cert_chain(settings.cert, settings.key or None)
        except (OSError, ValueError) as exc:  # SSLError is an OSError
            raise ConfigError("[nats] ca, cert, key", f"cannot be loaded: {exc}") from exc
        given["tls"] = context
    return {key: value for key, value in given.items() if value}


def _read(key: str, file: str) -> str:
    try:
        return Path(file).read_text(encoding="ascii")
    except (OSError, ValueError) as exc:  # UnicodeDecodeError is a ValueError
        raise ConfigError(f"[nats] {key}", f"cannot be read: {exc}") from exc


def _creds(key: str, text: str) -> RawCredentials:
    text = "\n".join([*text.splitlines(), ""])
    seed = _SEED.search(text)
    if seed is None or _JWT.search(text) is None:
        raise ConfigError(
            f"[nats] {key}",
            "the file does not hold a user's JWT and seed: make one with `nsc generate creds`",
        )
    _seed(key, seed[1])
    return RawCredentials(text)


def _seed(key: str, seed: str) -> str:
    """`seed`, if it is valid."""
    try:
        import nkeys  # type: ignore[import-untyped]
    except ImportError as exc:
        raise ConfigError(key, "needs nkeys: pip install 'box-bridge[nkeys]'") from exc
    try:
        nkeys.from_seed(bytearray(seed.encode())).wipe()
    except Exception as exc:  # nkeys raises errors of binascii and others, too
        raise ConfigError(f"[nats] {key}", "the seed in the file is not a valid one") from exc
    return seed
