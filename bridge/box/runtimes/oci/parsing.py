"""The output of a container engine, parsed into values. Pure.

Engines print more or less the shapes that docker introduced: podman lists in one array, docker and
nerdctl print one object a line, a3s-box adds fields of its own beside the docker-shaped part.
Anything else raises an exception of `foreign_errors.FOREIGN`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct, field

from bridge.box.runtimes.base import Usage
from bridge.box.state.runtime_limits import port_pair

_NOT_STARTED: Final = frozenset({"created", "configured", "initialized"})
_RUNNING: Final = frozenset({"running", "paused", "stopping", "restarting", "up"})
_SIZE: Final = re.compile(r"([\d.]+)\s*([kKMGT]?)(i?)B")
_DURATION: Final = re.compile(r"([\d.]+)(ns|µs|us|ms|s|m|h)")
_SECONDS: Final = {"ns": 1e-9, "µs": 1e-6, "us": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}
_COLUMN: Final = re.compile(r"\s*[│┆|]\s*|\s{2,}")
_MISSING: Final = re.compile(
    r"no such (container|object)\b|no container with name or ID", re.IGNORECASE
)
_ERROR: Final = re.compile(
    r"^(?:Error(?: response from daemon)?|FATA\[\d+\]|error|.*level=fatal msg=)[:\s]*"
)


class ContainerState(Struct, frozen=True, kw_only=True):
    """One container as its engine reports it. `ports` maps guest ports to host ports.

    `started` says whether it was ever started, `running` whether it runs now. `code` is None where
    the engine does not know how it ended, `pid` 0 where the engine reports no pid.
    """

    name: str
    started: bool
    running: bool
    pid: int = 0
    code: int | None = None
    oom: bool = False
    error: str = ""
    ports: Mapping[int, int] = field(default_factory=dict)


class ContainerSample(Struct, frozen=True, kw_only=True):
    """What one container uses.

    `cpu_seconds` counts since its start; None where the engine reports only `cpu_percent`, the
    share of one processor in the last moment.
    """

    cpu_percent: float
    cpu_seconds: float | None
    memory_bytes: int


# ── inspect ──────────────────────────────────────────────────────────────────────────────


class _StateDocument(Struct, rename="pascal"):
    status: str = ""
    running: bool = False
    pid: int | None = None
    exit_code: int | None = None
    oom_killed: bool = field(default=False, name="OOMKilled")
    error: str = ""


class _Binding(Struct, rename="pascal"):
    host_ip: str = ""
    host_port: str = ""


class _Network(Struct, rename="pascal"):
    ports: dict[str, list[_Binding] | None] | None = None


class _Inspected(Struct):
    """Docker's field names first, then those that a3s-box adds."""

    state: _StateDocument = field(name="State")
    docker_name: str = field(default="", name="Name")
    network: _Network | None = field(default=None, name="NetworkSettings")
    name: str = ""
    pid: int | None = None
    port_map: list[str] = field(default_factory=list)


def parse_inspect(data: bytes, address: str = "") -> dict[str, ContainerState]:
    """The output of ``inspect``, by container name.

    An engine may publish a guest port at another host port for IPv6 than for IPv4: the one of the
    family of `address` counts, that of IPv4 where `address` is none.
    """
    documents = msgspec.json.decode(data or b"[]", type=list[_Inspected])
    states = (_state(document, ipv6=":" in address) for document in documents)
    return {state.name: state for state in states}


def _state(document: _Inspected, *, ipv6: bool) -> ContainerState:
    state = document.state
    status = state.status.lower()
    return ContainerState(
        name=(document.docker_name or document.name).removeprefix("/"),
        started=status not in _NOT_STARTED,
        running=state.running or status in _RUNNING,
        pid=state.pid or document.pid or 0,
        code=state.exit_code,
        oom=state.oom_killed,
        error=state.error,
        ports=_ports(document, ipv6=ipv6),
    )


def _ports(document: _Inspected, *, ipv6: bool) -> dict[int, int]:
    pairs = [port_pair(entry.removesuffix("/tcp")) for entry in document.port_map]
    ports = {guest: host for host, guest in pairs if host}
    bound = document.network.ports if document.network and document.network.ports else {}
    for guest, bindings in bound.items():
        number, _, protocol = guest.partition("/")
        best_first = sorted(bindings or (), key=lambda item: (":" in item.host_ip) != ipv6)
        hosts = [item.host_port for item in best_first if item.host_port.isdecimal()]
        if hosts and protocol in ("", "tcp"):
            ports[int(number)] = int(hosts[0])
    return ports


# ── ps ───────────────────────────────────────────────────────────────────────────────────


def parse_list(data: bytes) -> dict[str, bool]:
    """The output of ``ps -a``, by container name: whether each container runs."""
    running = {}
    for item in _objects(data):
        names = item.get("Names") or item.get("Name") or item.get("name") or ""
        name = names[0] if isinstance(names, list) and names else str(names).partition(",")[0]
        status = str(item.get("State") or item.get("Status") or item.get("status") or "").lower()
        if not name:
            raise ValueError("it lists a container without a name")
        running[str(name).removeprefix("/")] = (status.split() or [""])[0] in _RUNNING
    return running


def _objects(data: bytes) -> list[dict[str, Any]]:
    """The objects of an array, or of one line each."""
    text = data.strip()
    if text.startswith(b"["):
        return msgspec.json.decode(text, type=list[dict[str, Any]])
    return msgspec.json.Decoder(dict[str, Any]).decode_lines(text) if text else []


# ── stats ────────────────────────────────────────────────────────────────────────────────


def parse_stats(data: bytes) -> dict[str, ContainerSample]:
    """The output of ``stats --no-stream``, JSON or a table, by container name."""
    if data.strip()[:1] in (b"[", b"{"):
        return dict(_sample(item) for item in _objects(data))
    return _table(data.decode(errors="replace"))


def _sample(item: dict[str, Any]) -> tuple[str, ContainerSample]:
    time, share = item.get("cpu_time"), item.get("CPUPerc") or item.get("cpu_percent")
    memory = str(item.get("MemUsage") or item.get("mem_usage") or "")
    sample = ContainerSample(
        cpu_percent=_percent(str(share)),
        cpu_seconds=_seconds(time) if isinstance(time, str) else None,
        memory_bytes=_bytes(memory.partition("/")[0]),
    )
    return str(item.get("Name") or item.get("name") or ""), sample


def _table(text: str) -> dict[str, ContainerSample]:
    samples: dict[str, ContainerSample] = {}
    heads: list[str] = []
    for line in text.splitlines():
        cells = [cell for cell in _COLUMN.split(line.strip()) if cell]
        if "NAME" in cells:
            heads = cells
        elif heads and len(cells) == len(heads):
            row = dict(zip(heads, cells, strict=True))
            memory = row.get("MEM USAGE / LIMIT", "").partition("/")[0]
            samples[row["NAME"]] = ContainerSample(
                cpu_percent=_percent(row.get("CPU %", "")),
                cpu_seconds=None,
                memory_bytes=_bytes(memory),
            )
    return samples


def _percent(text: str) -> float:
    try:
        return float(text.strip().removesuffix("%"))
    except ValueError:
        return 0.0  # "--": the container has just ended


def _bytes(text: str) -> int:
    """A number of bytes: podman uses powers of 1,000 (``kB``), docker of 1,024 (``KiB``)."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        return 0
    step = 1024 if match[3] else 1000
    power: int = step ** " KMGT".index(match[2].upper() or " ")
    return round(float(match[1]) * power)


def _seconds(text: str) -> float:
    """A duration in Go's format, in seconds: ``1m2.5s``, ``40.2ms``."""
    return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION.findall(text))


def compute_usage(
    before: tuple[float, ContainerSample] | None, after: tuple[float, ContainerSample]
) -> Usage:
    """What a container uses now, from two samples with their times in seconds of one clock.

    `before` is None for the first sample.
    """
    at, sample = after
    share = sample.cpu_percent if sample.cpu_seconds is None else 0.0
    if before is not None and sample.cpu_seconds is not None:
        then, earlier = before
        if earlier.cpu_seconds is not None and at > then:
            used = max(0.0, sample.cpu_seconds - earlier.cpu_seconds)
            share = round(100 * used / (at - then), 1)
    return Usage(cpu_percent=share, memory_bytes=sample.memory_bytes)


# ── error output ─────────────────────────────────────────────────────────────────────────


def error_line(stderr: str) -> str:
    """The line with the reason: the last one that is marked as an error, else the last one."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR.match(line)]
    reason = (errors or lines or ["the engine gave no reason"])[-1]
    return _ERROR.sub("", reason).strip('"')


def is_port_taken(stderr: str) -> bool:
    """Whether a container could not start because another process has its port."""
    return "address already in use" in stderr or "port is already allocated" in stderr


def is_missing(stderr: str) -> bool:
    """Whether a call failed because there is no such container.

    Only these words count: a Box that mistakes another failure for it drops a living instance.
    """
    return _MISSING.search(stderr) is not None


def is_name_taken(stderr: str) -> bool:
    """Whether a container could not be created because its name is in use."""
    return "already in use" in stderr and "name" in stderr
