"""The canonical form of payloads: equal values have equal bytes, times in UTC, floats as f32."""

from __future__ import annotations

import struct
from collections.abc import Callable
from datetime import UTC
from typing import Any, Final

from msgspec.structs import replace

from bridge.errors import ProtocolError
from bridge.protocol.messages import (
    U64_MAX,
    HostStats,
    InstanceEvent,
    InstanceHealth,
    InstanceInfo,
    InstanceRegistration,
    InstancesResponse,
    ScaleResponse,
)
from bridge.protocol.times import in_utc

Canonical = Callable[[Any], Any]


def _f32(value: float) -> float:
    """The double whose shortest decimal is also the shortest decimal of `value` as an f32."""
    if -1e3 < value < 1e3 and round(value, 3) == value:
        return value  # six significant digits always survive a float (FLT_DIG)
    try:
        single = struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")  # as Rust's `as f32`
    for digits in range(6, 10):
        short = float(f"{single:.{digits}g}")
        if struct.unpack("f", struct.pack("f", short))[0] == single:
            return short
    return float(single)


def _health(value: InstanceHealth) -> InstanceHealth:
    cpu = value.cpu_percent
    if cpu is not None and (rounded := _f32(cpu)) != cpu:
        value = replace(value, cpu_percent=rounded)
    if value.memory_bytes is not None and value.memory_bytes > U64_MAX:
        raise ProtocolError("InstanceHealth", "memory_bytes", "expected `int` <= 2^64 - 1")
    return value


def _info(value: InstanceInfo) -> InstanceInfo:
    created = in_utc(value.created_at)
    ready = None if value.ready_at is None else in_utc(value.ready_at)
    health = _health(value.health)
    if created is value.created_at and ready is value.ready_at and health is value.health:
        return value
    return replace(value, created_at=created, ready_at=ready, health=health)


def _event(value: InstanceEvent) -> InstanceEvent:
    at = value.timestamp
    return value if at.tzinfo is UTC else replace(value, timestamp=in_utc(at))


def _registration(value: InstanceRegistration) -> InstanceRegistration:
    at = value.started_at
    return value if at.tzinfo is UTC else replace(value, started_at=in_utc(at))


def _with_infos(value: Any) -> Any:
    if all(map(_is_canonical, value.instances)):
        return value
    return replace(value, instances=[_info(info) for info in value.instances])


def _is_canonical(info: InstanceInfo) -> bool:
    """Whether `_info` would return the same object, as it nearly always does.

    This check takes a third of the time, and a reply has hundreds of instances.
    """
    health, ready = info.health, info.ready_at
    cpu, memory = health.cpu_percent, health.memory_bytes
    return (
        info.created_at.tzinfo is UTC
        and (ready is None or ready.tzinfo is UTC)
        and (cpu is None or (-1e3 < cpu < 1e3 and round(cpu, 3) == cpu))
        and (memory is None or memory <= U64_MAX)
    )


def _stats(value: HostStats) -> HostStats:
    return {key: _health(health) for key, health in value.items()}


CANONICAL: Final[dict[Any, Canonical]] = {
    InstanceHealth: _health,
    InstanceInfo: _info,
    InstanceEvent: _event,
    InstanceRegistration: _registration,
    ScaleResponse: _with_infos,
    InstancesResponse: _with_infos,
    HostStats: _stats,
    dict: _stats,
}
