"""Why a connection was not made or has ended: a short message, its cure, whether to retry."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

import nats.errors

from bridge.errors import ConnectFailed

FOREIGN: Final = (nats.errors.Error, OSError, UnicodeError)  # what nats-py and the socket raise

_CURES: Final = {
    "maximum subscriptions exceeded": (
        "this server or account allows fewer subscriptions than are needed: raise "
        "max_subscriptions of the server, or the account's limit of subscriptions"
    ),
    "maximum connections exceeded": "raise max_connections of the server",
    "maximum account active connections exceeded": "raise max_connections of the account",
    "user authentication expired": "renew the credentials file",
    "authentication expired": "renew the credentials file",
    "account authentication expired": "renew the account's JWT",
    "maximum payload violation": "raise max_payload of the server",
}
"""What helps against an error that the server ends a connection with, in lower case."""


def describe(exc: Exception) -> str:
    """A short message for `exc`, without nats-py's prefix, and with the cure for a limit."""
    message = _describe(exc)
    cure = _CURES.get(message.strip("'").lower())
    return f"{message}: {cure}" if cure else message


def is_from_server(exc: Exception) -> bool:
    """Whether the server ended the connection with this error, which another try may meet again."""
    return isinstance(exc, nats.errors.Error) and describe(exc) != _describe(exc)


def _describe(exc: Exception) -> str:
    if type(exc) is TimeoutError:
        return "no answer in time"
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"the server's certificate is refused: {getattr(exc, 'verify_message', exc)}"
    if (
        isinstance(exc, OSError)
        and exc.errno
        and not isinstance(exc, (socket.gaierror, ssl.SSLError))
    ):
        return os.strerror(exc.errno).lower()
    try:
        return str(exc).removeprefix("nats: ") or type(exc).__name__
    except (AttributeError, TypeError):  # some of nats-py's errors lack what their text needs
        return type(exc).__name__


def connect_failure(
    urls: Sequence[str], errors: Sequence[Exception], *, seconds: float, context: str
) -> ConnectFailed:
    """The error of a connection that none of `urls` accepted within `seconds`.

    `errors` are the failures of the attempts; a refusal counts most. `context` is the name of the
    nats CLI's context that has the URLs, or empty.
    """
    exc = next(filter(is_refusal, errors), errors[0])
    reason = _reason(exc, urls, seconds)
    source = f" (context {context} of the nats CLI)" if context else ""
    refused = is_refusal(exc) and not isinstance(exc, TimeoutError)
    return ConnectFailed(urls, reason + source, cure=_cure(reason), refused=refused)


def _reason(exc: Exception, urls: Sequence[str], seconds: float) -> str:
    if isinstance(exc, TimeoutError):  # nats-py's are, too
        return f"no answer in {seconds:g} s"
    if isinstance(exc, socket.gaierror):
        hosts = sorted({str(urlsplit(url).hostname) for url in urls})
        if exc.errno == socket.EAI_AGAIN:
            return f"the name {', '.join(hosts)} cannot be looked up at the moment"
        return f"unknown host {', '.join(hosts)}"
    if isinstance(exc, ImportError) or "import aiohttp" in str(exc):
        return "WebSocket URLs need `pip install 'box-bridge[box]'`"
    return _describe(exc)


def _cure(reason: str) -> str:
    lower = reason.strip("'").lower()
    if cure := _CURES.get(lower):
        return cure
    if "authorization" in lower or "authentication" in lower:
        return (
            "check the credentials: [nats] creds, nkey, user and password, token, or NATS_… in the "
            "environment"
        )
    if "certificate" in lower or "tls" in lower or "ssl" in lower:
        return "check [nats] ca, cert and key, and whether the URL is tls:// where it must be"
    if lower.startswith(("unknown host", "websocket")):
        return "correct [nats] url, NATS_URL or --server"
    return "start it (`box-bridge up` runs one), or correct [nats] url, NATS_URL or --server"


def is_unreachable(exc: Exception) -> bool:
    """Whether no program listens at the address, or the address does not exist."""
    return isinstance(exc, (ConnectionRefusedError, socket.gaierror)) or (
        isinstance(exc, OSError) and exc.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH)
    )


def is_refusal(exc: Exception) -> bool:
    """Whether a server answered and refused: a retry cannot help."""
    if isinstance(exc, OSError):
        return isinstance(exc, ssl.SSLError)
    return "empty response" not in str(exc)  # it hung up: it may be starting or stopping
