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

from bridge.config.local_key import find_local_key
from bridge.errors import ConfigError
from bridge.nats_url import ServerUrl, parse_urls
from bridge.settings import NatsConfig

_JWT: Final = re.compile(r"BEGIN NATS USER JWT-+\n[\w.-]+\n")
_IS_SEED: Final = re.compile(r"S[A-Z2-7]{57}")  # an nkey seed
_IDENTITIES: Final = ("user", "token", "user_credentials", "nkeys_seed_str")
_TEXT: Final = ("creds", "nkey")  # the others may be binary
_SEED: Final = re.compile(r"BEGIN USER NKEY SEED-+\n(\w+)\n")


def credentials(settings: NatsConfig) -> dict[str, Any]:
    """The arguments for nats-py's `connect`. Raises ConfigError for an unusable file."""
    given: dict[str, Any] = {
        "user": settings.user,
        "password": settings.password,
        "token": settings.token,
        "tls_handshake_first": settings.tls_first,
    }
    if first := logins(settings).get(""):
        given |= login_options(first)
    if settings.creds:
        given["user_credentials"] = _creds("creds", _read("creds", settings.creds))
    if settings.nkey:
        given["nkeys_seed_str"] = _seed("nkey", _read("nkey", settings.nkey).strip())
    if not any(given.get(name) for name in _IDENTITIES) and (seed := find_local_key(settings.urls)):
        given["nkeys_seed_str"] = _seed("nkey", seed)
    if settings.ca or settings.cert or settings.tls_first:
        given["tls"] = _tls(settings)
    return {key: value for key, value in given.items() if value}


def logins(settings: NatsConfig) -> dict[str, ServerUrl]:
    """The user and password, or token, for each ``host:port``, as the URLs have them; those of the
    first URL that has any are under "". Empty where a setting says who we are.
    """
    if any((settings.user, settings.token, settings.creds, settings.nkey)):
        return {}
    found = [server for server in parse_urls(settings.url) if server.user is not None]
    return {"": found[0], **{server.netloc: server for server in found}} if found else {}


def login_options(server: ServerUrl) -> dict[str, str | None]:
    """nats-py's options for the credentials in a URL."""
    if server.password is None:
        return {"user": None, "password": None, "token": server.user}
    return {"user": server.user, "password": server.password, "token": None}


def _tls(settings: NatsConfig) -> ssl.SSLContext:
    def refuse() -> str:
        raise ConfigError(
            "[nats] key",
            f"{settings.key or settings.cert} is encrypted, and no pass phrase is asked for: "
            "decrypt it with `openssl pkey -in … -out …`, and let nobody else read it (mode 0600)",
        )

    files = {"ca": settings.ca, "cert": settings.cert, "key": settings.key}
    for key, file in files.items():
        if file:
            _read(key, file)
    try:
        context = ssl.create_default_context(cafile=settings.ca or None)
    except (OSError, ValueError) as exc:
        raise ConfigError("[nats] ca", f"{settings.ca} holds no certificate: {exc}") from exc
    try:
        if settings.cert:
            context.load_cert_chain(settings.cert, settings.key or None, password=refuse)
    except (OSError, ValueError) as exc:
        raise ConfigError("[nats] cert, key", f"cannot be used together: {exc}") from exc
    return context


def _read(key: str, file: str) -> str:
    """The text of `file`; raises ConfigError, without showing what may be a secret."""
    if "\n" in file or _IS_SEED.fullmatch(Path(file).name):
        raise ConfigError(f"[nats] {key}", "must name a file: it seems to hold the secret itself")
    try:
        return Path(file).read_text(
            encoding="utf-8-sig", errors="strict" if key in _TEXT else "replace"
        )
    except (OSError, ValueError) as exc:
        problem = exc.strerror if isinstance(exc, OSError) else "it is not a text file"
        raise ConfigError(f"[nats] {key}", f"{file} cannot be read: {problem}") from exc


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
        raise ConfigError(
            f"[nats] {key}", "credentials files need `pip install 'box-bridge[nkeys]'`"
        ) from exc
    try:
        nkeys.from_seed(bytearray(seed.encode())).wipe()
    except Exception as exc:  # nkeys raises errors of binascii and others, too
        raise ConfigError(f"[nats] {key}", "the seed in the file is not a valid one") from exc
    return seed
