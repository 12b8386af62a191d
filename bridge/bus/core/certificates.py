"""When the TLS certificates of a connection expire."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from typing import Any, Final

_END: Final = "notAfter"


def peer_expiry(connection: ssl.SSLObject | None) -> datetime | None:
    """When the server's certificate expires; None without TLS."""
    return _expiry(connection.getpeercert() if connection is not None else None)


def file_expiry(file: str) -> datetime | None:
    """When the certificate in `file` expires; None if there is none, or if that cannot be read."""
    # The standard library reads a certificate from a file only by this function of its tests.
    decode = getattr(getattr(ssl, "_ssl", None), "_test_decode_cert", None)
    if not file or decode is None:
        return None
    try:
        return _expiry(decode(file))
    except (OSError, ValueError):
        return None


def _expiry(certificate: dict[str, Any] | None) -> datetime | None:
    end = (certificate or {}).get(_END)
    if end is None:
        return None
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(end), UTC)
