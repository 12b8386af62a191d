"""Why a connection could not be made or has ended: for people, and for who would try again."""

from __future__ import annotations

import os
import socket
import ssl


def told(exc: Exception) -> str:
    """What went wrong, in as few words as tell it."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"the server's certificate is refused: {exc.verify_message}"
    if (
        isinstance(exc, OSError)
        and exc.errno
        and not isinstance(exc, (socket.gaierror, ssl.SSLError))
    ):
        return os.strerror(exc.errno).lower()
    return str(exc).removeprefix("nats: ") or type(exc).__name__


def is_refusal(exc: Exception) -> bool:
    """Whether a server was there and said no, so that asking again is of no use."""
    if isinstance(exc, OSError):
        return isinstance(exc, ssl.SSLError)
    return "empty response" not in str(exc)  # it hung up: it may be starting or stopping
