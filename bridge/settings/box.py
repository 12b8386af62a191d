"""``[box]``: the settings of a host."""

from __future__ import annotations

import re
from typing import Annotated, Final

from msgspec import Meta, Struct, field

from bridge.images import MAX_PATTERNS, check_pattern
from bridge.settings.units import VariableNames
from bridge.validation import address_blocker

ENGINES: Final = ("podman", "docker", "nerdctl", "a3s-box")

_AGE: Final = re.compile(r"[1-9][0-9]{0,5}[smhd]")


class KeepEnded(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long the directories of ended instances are kept, with their logs."""

    count: Annotated[int, Meta(ge=0, le=10_000)] = 10
    """The most ended instances of each service."""
    age: str = "7d"
    """The longest time: a number with `s`, `m`, `h` or `d`."""

    def __post_init__(self) -> None:
        if _AGE.fullmatch(self.age) is None:
            raise ValueError(f'age = {self.age!r} must be like "12h" or "7d"')

    @property
    def seconds(self) -> int:
        """`age` in seconds."""
        return int(self.age[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[self.age[-1]]


class BoxConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[box]``: this host."""

    name: str = ""
    """The host's name on the bus: 1 to 63 of `a-z`, `0-9` and `-`. The default is the first label
    of the machine's host name, in lower case. Two live Boxes cannot have one name.
    """
    address: str = "127.0.0.1"
    """The address, or the name, at which gateways reach the instances of this host, without a port
    and brackets. `0.0.0.0` and `::` are refused. The Box warns about a loopback address if its NATS
    server is not local.
    """
    max_instances: Annotated[int, Meta(ge=1, le=100_000)] = 20
    """The most instances on this host, over all services."""
    data_dir: str = "data"
    """The directory for the journal, the logs, the lock and the id of the host. A copy of it, or a
    clone of the machine, is refused while the original lives.
    """
    keep_ended: Annotated[int, Meta(ge=0, le=10_000)] | KeepEnded = 10
    """How many ended instances of each service keep their logs, or a table with `count` (10) and
    `age` (`"7d"`): `{ count = 20, age = "36h" }`.
    """
    ports: str = "20000-21999"
    """The port range for process instances. The Box takes the next free port after the last one."""
    runtime: str = "process"
    """`process` runs programs; `oci` runs containers and MicroVMs."""
    engine: str = "podman"
    """The container engine of the `oci` runtime: `podman`, `docker`, `nerdctl`, `a3s-box`, or a
    path.
    """
    isolation: str = ""
    """`sandbox` selects a3s-box's shared-kernel sandbox. The default is a MicroVM."""
    labels: dict[str, str] = field(default_factory=dict)
    """Facts about the host, as `{ zone = "a", disk = "fast" }`. Services can need them."""
    allow_images: Annotated[list[str], Meta(max_length=MAX_PATTERNS)] = field(default_factory=list)
    """Patterns of the images that requests may name. Without it a request may name only the image
    that the service is configured with. Only for the `oci` runtime.
    """
    request_env: VariableNames = field(default_factory=list)
    """Names of the variables that requests may set for services that requests make, by an image of
    `allow_images`. A service with a table has its own `request_env`.
    """
    request_ports: str = ""
    """The range of host ports that a request's `port_map` may fix, as `"8000-8999"`. The default is
    the range of `ports`. The fixed port of a service's own `port_map` is always allowed.
    """
    inherit_env: VariableNames = field(default_factory=list)
    """Names of variables that process instances take from the Box's own environment, beside `PATH`,
    `HOME`, `USER`, `LOGNAME`, `SHELL`, `LANG`, `LANGUAGE`, `LC_…`, `TZ` and `TMPDIR`.
    """
    metrics: str = ""
    """`host:port` at which the Box serves `/metrics` for Prometheus. `:port` is on 127.0.0.1. Off
    by default. A scrape needs the bearer token in the file `metrics-token` of `data_dir`, which the
    Box makes if it is missing.
    """
    role: str = "box"
    """`box` answers requests, decides for the fleet and runs instances. `runner` runs instances
    and decides nothing: its NATS user needs no right to write desired states and orders. A fleet
    needs a Box that decides; the others may be runners.
    """
    on_exit: str = ""
    """What the Box does with the instances when it is stopped: `leave` them running, or `drain`
    them. A Box that ends because of an error leaves them running. The default is `leave` for
    `box-bridge box` and `drain` for `box-bridge up`.
    """

    def __post_init__(self) -> None:
        _check_choice("role", self.role, ("box", "runner"))
        if self.on_exit:
            _check_choice("on_exit", self.on_exit, ("leave", "drain"))
        if self.runtime not in ("process", "oci"):
            raise ValueError(f'runtime = {self.runtime!r} is not known: use "process" or "oci"')
        if self.engine not in ENGINES and "/" not in self.engine:
            raise ValueError(
                f"engine = {self.engine!r} is not known: use {', '.join(ENGINES)}, or a path"
            )
        if self.isolation not in ("", "sandbox"):
            raise ValueError(f'isolation = {self.isolation!r} must be "sandbox", or left out')
        if problem := address_blocker(self.address):
            raise ValueError(f"address = {self.address!r} {problem}")
        if len(self.port_range) < self.max_instances:
            raise ValueError(
                f"ports = {self.ports!r} holds {len(self.port_range)} ports, "
                f"fewer than max_instances = {self.max_instances}"
            )
        for pattern in self.allow_images:
            check_pattern(pattern)
        if self.allow_images and self.runtime == "process":
            raise ValueError('allow_images needs a runtime that runs images: runtime = "oci"')
        _range("request_ports", self.request_ports or self.ports)
        match = re.fullmatch(r".*:([0-9]{1,5})", self.metrics)
        if self.metrics and (match is None or int(match[1]) > 65535):
            raise ValueError(f'metrics = {self.metrics!r} must be "host:port"')

    @property
    def decides(self) -> bool:
        """Whether this Box answers requests and decides for the fleet."""
        return self.role == "box"

    @property
    def kept(self) -> KeepEnded:
        """`keep_ended` as a table."""
        keep = self.keep_ended
        return keep if isinstance(keep, KeepEnded) else KeepEnded(count=keep)

    @property
    def port_range(self) -> range:
        """The ports of `ports`; raises ValueError if it is not ``first-last``."""
        return _range("ports", self.ports)

    @property
    def request_range(self) -> range:
        """The ports of `request_ports`."""
        return _range("request_ports", self.request_ports or self.ports)


def _range(key: str, text: str) -> range:
    match = re.fullmatch(r"([0-9]{1,5})-([0-9]{1,5})", text)
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= first <= last <= 65535:
        raise ValueError(f'{key} = {text!r} must be "first-last" within 1 to 65535')
    return range(first, last + 1)


def _check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError if `value` is none of `choices`."""
    if value not in choices:
        listed = " or ".join(f'"{choice}"' for choice in choices)
        raise ValueError(f"{key} = {value!r} must be {listed}")
