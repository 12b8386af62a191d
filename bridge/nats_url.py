"""NATS URLs: which server, and the credentials in it. Pure."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote, urlsplit

from msgspec import Struct

from bridge.errors import without_secret

_SCHEMES: Final = ("nats", "tls", "ws", "wss")
_WEB: Final = ("ws", "wss")  # a proxy in front of such a server may need a path
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ENCODE: Final = (
    "in a user or password write %40 for @, %3A for :, %2F for /, %2C for a comma, %23 for #, "
    "%3F for ? and %25 for %, or use NATS_USER and NATS_PASSWORD"
)
_CURES: Final = {
    "tcp": "write nats:// in place of tcp://",
    "ssl": "write tls:// in place of ssl://",
    "http": "http:// is for the monitoring port; write nats://, or ws:// for a WebSocket",
    "https": "write tls://, or wss:// for a WebSocket",
}


class ServerUrl(Struct, frozen=True, kw_only=True):
    """One server. `url` has no credentials. `user` without a `password` (None) is a token; both are
    decoded, and None where the URL has none.
    """

    url: str
    user: str | None = None
    password: str | None = None

    @property
    def netloc(self) -> str:
        """``host:port``, with NATS' port where the URL has none."""
        return with_port(urlsplit(self.url).netloc)


def with_port(netloc: str) -> str:
    """`netloc` with NATS' port if it has none."""
    return netloc if urlsplit(f"//{netloc}").port else f"{netloc.rstrip(':')}:4222"


def parse_urls(text: str) -> list[ServerUrl]:
    """The servers of `text`, separated by commas. Raises ValueError with the cure, and never shows
    a secret.
    """
    servers: list[ServerUrl] = []
    for given in filter(None, map(str.strip, text.split(","))):
        try:
            server = _parse(given)
        except ValueError as exc:
            shown = without_secret(text)
            raise ValueError(f"url = {shown!r} is not a NATS URL: {exc}") from exc
        if servers and server.user is not None and "://" not in given and servers[-1].user is None:
            raise ValueError(
                f"url = {without_secret(text)!r} is not clear: either a password holds a comma "
                "(write %2C), or the second server needs its nats://"
            )
        servers.append(server)
    if not servers:
        raise ValueError(f"url = {text!r} is not a NATS URL: it names no server")
    return servers


def _parse(given: str) -> ServerUrl:
    scheme, separator, rest = given.partition("://")
    scheme = scheme.lower() if separator else "nats"
    rest = rest if separator else given
    if scheme not in _SCHEMES:
        cure = _CURES.get(scheme, "write it as nats://host:4222, tls://…, ws://… or wss://…")
        raise ValueError(cure)
    if any(c.isspace() or not c.isprintable() for c in rest):
        raise ValueError("it holds a space or a control character; several are separated by commas")
    parts = urlsplit(f"{scheme}://{rest}")
    beyond = parts.path.rstrip("/") + parts.query + parts.fragment
    if "@" in beyond or (beyond and "@" in parts.netloc):
        raise ValueError(_ENCODE)
    if (parts.query or parts.fragment or beyond) and scheme not in _WEB:
        raise ValueError("it ends with the port: remove the path and what follows ?")
    login, at, address = parts.netloc.rpartition("@")
    if not _is_address(address):
        raise ValueError(f"write it as {scheme}://host:4222, IPv6 in brackets; {_ENCODE}")
    if _BAD_ESCAPE.search(login):
        raise ValueError(_ENCODE)
    url = f"{scheme}://{address}{rest[len(parts.netloc) :] if beyond else ''}"
    if not at:
        return ServerUrl(url=url)
    user, colon, password = login.partition(":")
    return ServerUrl(url=url, user=unquote(user), password=unquote(password) if colon else None)


def _is_address(address: str) -> bool:
    try:
        parts = urlsplit(f"//{address}")
        bare = address.count(":") > 1 and not address.startswith("[")
        return bool(parts.hostname) and parts.port != 0 and not bare
    except ValueError:  # a port that is none, or half an IPv6 address
        return False
