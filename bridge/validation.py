"""What a registration may say, whoever makes it: a Box, an instance, or a stranger. Pure.

Gateways connect to an endpoint and keep the metadata in memory, so both are checked by who sends
them and by who reads them, with the same rules.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Mapping
from typing import Final

from bridge.errors import ProtocolError
from bridge.protocol import InstanceDeregistration, InstanceHealth, decode

MAX_METADATA: Final = 16 * 1024
"""Bytes of UTF-8, keys and values together."""

DISAGREE: Final = "subject and payload disagree"
"""Why a message is refused that names another instance, or service, than its subject does."""

HEALTHY_KEY: Final = "box-healthy"
"""In the metadata of an instance that takes no traffic just now: ``box-healthy=false``."""

_PORT: Final = (  # 1 to 65535
    r":(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
)
_NAMED: Final = re.compile(r"[A-Za-z0-9._-]{1,253}" + _PORT)
_BRACKETED: Final = re.compile(r"\[([^\[\]]+)\]" + _PORT)
_MAX_CPU: Final = 1e5  # percent of one core: a thousand cores
_MAX_WITHDRAWAL: Final = 16 * 1024  # bytes; a reason of 1,000 letters takes 6,000 at most


def check_endpoint(value: str) -> str:
    """`value`, if it is ``host:port`` with a name, an IPv4 or a bracketed IPv6 address; raises
    ProtocolError.
    """
    if _NAMED.fullmatch(value) is not None:
        return value
    bracketed = _BRACKETED.fullmatch(value)
    if bracketed is None or not _is_address(bracketed[1]):
        raise ProtocolError(
            "InstanceRegistration",
            "endpoint",
            f'{value[:80]!r} is not "host:port", like 10.0.0.5:8080 or [fd00::5]:8080',
        )
    return value


def _is_address(bracketed: str) -> bool:
    """Whether what stands in brackets is an IPv6 address."""
    with contextlib.suppress(ValueError):
        return bool(ipaddress.IPv6Address(bracketed))
    return False


def check_metadata(metadata: Mapping[str, str]) -> Mapping[str, str]:
    """`metadata`, if it is not larger than 16 KiB; raises ProtocolError."""
    size = sum(len(key.encode()) + len(value.encode()) for key, value in metadata.items())
    if size > MAX_METADATA:
        raise ProtocolError(
            "InstanceRegistration", "metadata", f"{size} bytes is larger than 16 KiB"
        )
    return metadata


def check_health(health: InstanceHealth) -> InstanceHealth:
    """`health`, if it can be true of an instance; raises ProtocolError. The wire itself takes any
    number for the CPU.
    """
    cpu = health.cpu_percent
    if cpu is not None and not 0 <= cpu <= _MAX_CPU:
        raise ProtocolError("InstanceHealth", "cpu_percent", f"{cpu:g} is not 0 to {_MAX_CPU:g}")
    return health


def read_withdrawal(data: bytes, service: str, instance_id: str) -> InstanceDeregistration | str:
    """What withdraws the instance that a subject names; or why it is refused, for the metrics."""
    if len(data) > _MAX_WITHDRAWAL:
        return "too large"
    try:
        gone = decode(InstanceDeregistration, data)
    except ProtocolError:
        return "malformed"
    return gone if (gone.service, gone.instance_id) == (service, instance_id) else DISAGREE


def endpoint_of(host: str, port: int) -> str:
    """``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """The host, without brackets, and the port of an endpoint; raises ProtocolError."""
    host, _, port = check_endpoint(endpoint).rpartition(":")
    return host.strip("[]"), int(port)
