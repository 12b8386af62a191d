"""What a registration may say: one rule for who announces an instance and for who routes to it.

A Box, an instance that registers itself, and a gateway that hears of either hold a registration
against the same two checks, so that nothing is announced that nobody would take. Pure.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Final

from bridge.errors import ProtocolError

HEALTHY_KEY: Final = "box-healthy"
"""The metadata's key that says ``false`` while the instance is unhealthy."""

MAX_METADATA: Final = 16 * 1024
"""Bytes of keys and values together, in UTF-8."""

_TYPE: Final = "InstanceRegistration"
_ENDPOINT: Final = re.compile(r"(?:\[([^\[\]]+)\]|([A-Za-z0-9._-]{1,253})):([0-9]{1,5})")


def check_endpoint(value: str) -> str:
    """`value`, if it is ``host:port`` with a name, an IPv4 or a bracketed IPv6 address, and a port
    from 1 to 65535; raises ProtocolError if not.
    """
    match = _ENDPOINT.fullmatch(value)
    if match is None or not 1 <= int(match[3]) <= 65535:
        raise ProtocolError(_TYPE, "endpoint", f"{value[:80]!r} is not host:port")
    if match[1] is not None:
        try:
            ipaddress.IPv6Address(match[1])
        except ValueError as exc:
            problem = f"{value[:80]!r} has no IPv6 address in its brackets"
            raise ProtocolError(_TYPE, "endpoint", problem) from exc
    return value


def check_metadata(value: Mapping[str, str]) -> Mapping[str, str]:
    """`value`, if it is no larger than 16 KiB; raises ProtocolError if it is."""
    size = sum(len(key.encode()) + len(item.encode()) for key, item in value.items())
    if size > MAX_METADATA:
        raise ProtocolError(_TYPE, "metadata", f"{size} bytes are more than {MAX_METADATA}")
    return value
