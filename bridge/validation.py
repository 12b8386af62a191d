"""Checks of registrations and health reports, from a Box, an instance or any other client. Pure.

Gateways connect to the endpoint of a registration and keep its metadata in memory. The sender and
the reader therefore check both, with the same rules.
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
"""The reason for refusing a message whose payload names another instance than its subject."""

HEALTHY_KEY: Final = "box-healthy"
"""The metadata of an instance that must get no traffic now has ``box-healthy=false``."""

_PORT: Final = (  # 1 to 65535
    r":(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
)
_NAMED: Final = re.compile(r"[A-Za-z0-9._-]{1,253}" + _PORT)
_BRACKETED: Final = re.compile(r"\[([^\[\]]+)\]" + _PORT)
_MAX_NAME: Final = 253  # letters of a host's name
_LABEL: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_WILDCARD: Final = (
    "means every address, to which no gateway can connect: write the one at which gateways reach "
    "this host. Instances may still listen everywhere"
)
_MAX_CPU: Final = 1e5  # percent of one core: a thousand cores
_MAX_WITHDRAWAL: Final = 16 * 1024  # bytes; a reason of 1,000 letters takes 6,000 at most


def check_endpoint(value: str) -> str:
    """Return `value` if it is ``host:port``; raise ProtocolError otherwise.

    `host` is a name, an IPv4 address or a bracketed IPv6 address.
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
    """Whether the text in brackets is an IPv6 address."""
    with contextlib.suppress(ValueError):
        return bool(ipaddress.IPv6Address(bracketed))
    return False


def address_blocker(value: str) -> str | None:
    """Why gateways cannot connect to a host at `value`, and what to write; None if they can."""
    cure = "write a name or an address of this host alone, like 10.0.0.5, fd00::5 or host-a.example"
    if "://" in value or "/" in value or "@" in value:
        return f"is a URL: {cure}"
    if value.startswith("[") or value.endswith("]"):
        return "has brackets: write an IPv6 address without them, like fd00::5"
    if value != value.strip() or any(c.isspace() or not c.isprintable() for c in value):
        return f"holds a space or a control character: {cure}"
    with contextlib.suppress(ValueError):
        return _reach_blocker(ipaddress.ip_address(value.partition("%")[0]), value)
    if re.fullmatch(r"[^:]*:[0-9]*", value):
        return "has a port: leave it out, each instance has its own"
    if value == "*" or re.fullmatch(r"0[0.x]*", value):
        return _WILDCARD
    if not value.isascii():
        return f"is not ASCII: write it as {_punycode(value)}"
    labels = value.removesuffix(".").split(".")
    if len(value) > _MAX_NAME or not all(map(_LABEL.fullmatch, labels)) or labels[-1].isdecimal():
        return f"is neither a name nor an address: {cure}"
    return None


def _reach_blocker(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, value: str
) -> str | None:
    mapped = getattr(address, "ipv4_mapped", None)
    if address.is_unspecified or (mapped is not None and mapped.is_unspecified):
        return _WILDCARD
    if address.is_multicast or value == "255.255.255.255":
        return "is the address of a group: write an address of this host"
    if "%" in value:
        return "has a zone, which other hosts do not know: write another address of this host"
    return None


def _punycode(name: str) -> str:
    try:
        return name.encode("idna").decode()
    except UnicodeError:
        return "a name of a-z, 0-9 and '-'"


def check_metadata(metadata: Mapping[str, str]) -> Mapping[str, str]:
    """Return `metadata` if it is Unicode of at most 16 KiB; raise ProtocolError otherwise."""
    try:
        size = sum(len(key.encode()) + len(value.encode()) for key, value in metadata.items())
    except UnicodeEncodeError as exc:
        raise ProtocolError("InstanceRegistration", "metadata", "is not Unicode text") from exc
    if size > MAX_METADATA:
        raise ProtocolError(
            "InstanceRegistration", "metadata", f"{size} bytes is larger than 16 KiB"
        )
    return metadata


def check_health(health: InstanceHealth) -> InstanceHealth:
    """Return `health` if its CPU value is possible; raise ProtocolError otherwise.

    The wire contract itself allows any number.
    """
    cpu = health.cpu_percent
    if cpu is not None and not 0 <= cpu <= _MAX_CPU:
        raise ProtocolError("InstanceHealth", "cpu_percent", f"{cpu:g} is not 0 to {_MAX_CPU:g}")
    return health


def read_withdrawal(data: bytes, service: str, instance_id: str) -> InstanceDeregistration | str:
    """The withdrawal of the instance that a subject names; or, for metrics, why it is refused."""
    if len(data) > _MAX_WITHDRAWAL:
        return "too large"
    try:
        withdrawal = decode(InstanceDeregistration, data)
    except ProtocolError:
        return "malformed"
    same = (withdrawal.service, withdrawal.instance_id) == (service, instance_id)
    return withdrawal if same else DISAGREE


def endpoint_of(host: str, port: int) -> str:
    """``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """The host, without brackets, and the port of an endpoint; raises ProtocolError."""
    host, _, port = check_endpoint(endpoint).rpartition(":")
    return host.strip("[]"), int(port)
