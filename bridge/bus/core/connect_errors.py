"""Why a connection was not made or has ended: a short message, and whether a retry can help."""

from __future__ import annotations

import os
import socket
import ssl


def describe(exc: Exception) -> str:
    """A short message for `exc`, without nats-py's prefix."""
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
