"""Why a connection was not made or has ended: a short message, and whether a retry can help."""

from __future__ import annotations

import os
import socket
import ssl
from typing import Final

import nats.errors

_CURES: Final = {
    "maximum subscriptions exceeded": (
        "this server or account allows fewer subscriptions than are needed: raise "
        "max_subscriptions of the server, or the account's limit of subscriptions"
    ),
    "maximum connections exceeded": "raise max_connections of the server",
    "maximum account active connections exceeded": "raise the account's limit of connections",
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


def is_refusal(exc: Exception) -> bool:
    """Whether a server answered and refused: a retry cannot help."""
    if isinstance(exc, OSError):
        return isinstance(exc, ssl.SSLError)
    return "empty response" not in str(exc)  # it hung up: it may be starting or stopping
