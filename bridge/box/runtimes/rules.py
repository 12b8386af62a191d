"""What each runtime can honour of a ScaleConfig. Pure.

A value that a runtime cannot honour is refused in the reply, never ignored: any Box must be able
to say so for any host, so these rules know hosts only by what their records tell.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from bridge.protocol import ScaleConfig

_PORTS: Final = re.compile(r"(\d{1,5}):(\d{1,5})")


def refusal(runtime: str, config: ScaleConfig, *, cpus: int) -> str | None:
    """Why `runtime` on a host with `cpus` processors cannot honour `config`; None if it can."""
    check = _CHECKS.get(runtime)
    if check is None:
        return f"runtime {runtime!r} is not known to this Box"
    return check(config, cpus)


def fixed_port(port_map: list[str]) -> int:
    """The host port that `port_map` fixes; 0 where it fixes none."""
    match = _PORTS.fullmatch(port_map[0]) if port_map else None
    return int(match[1]) if match else 0


def _process(config: ScaleConfig, cpus: int) -> str | None:
    if config.image:
        return (
            f"image {config.image!r} cannot be honoured by the process runtime, which runs the "
            "configured command: leave image out"
        )
    if config.vcpus is not None and not 1 <= config.vcpus <= cpus:
        return f"vcpus must be 1 to {cpus}, the processors of the host, not {config.vcpus}"
    if config.memory_mib is not None and config.memory_mib < 1:
        return "memory_mib must be at least 1"
    return _ports(config.port_map) or _env(config)


def _ports(port_map: list[str]) -> str | None:
    if len(port_map) > 1:
        return "port_map may have one entry in the process runtime: an instance has one port"
    for entry in port_map:
        match = _PORTS.fullmatch(entry)
        if match is None or int(match[1]) > 65535 or not 1 <= int(match[2]) <= 65535:
            return (
                f'port_map {entry[:40]!r} must be "host:guest", ports from 1 to 65535 (host 0: any)'
            )
    return None


def _env(config: ScaleConfig) -> str | None:
    port = fixed_port(config.port_map)
    for key, value in config.env.items():
        if not key or "=" in key or "\0" in key + value:
            return f"env {key[:40]!r} cannot be an environment variable"
        if key.startswith("BOX_"):
            return f"env {key} is set by the Box"
        if key == "PORT" and value != str(port or ""):
            return (
                'env PORT is set by the Box: for a fixed port use port_map ["8080:80"], '
                "which makes PORT 8080"
            )
    return None


_CHECKS: Final[dict[str, Callable[[ScaleConfig, int], str | None]]] = {"process": _process}
