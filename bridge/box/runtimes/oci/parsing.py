"""What a container engine answers, as values. Pure.

Engines agree on the shape that docker gave its answers, more or less: podman lists in one array,
docker and nerdctl one object a line, a3s-box puts some of it beside the docker-shaped part. What
none of these is raises ValueError, and is told as the engine's failure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct, field

from bridge.box.runtimes.base import Usage
from bridge.box.state.runtime_limits import port_pair

_UNBEGUN: Final = frozenset({"created", "configured", "initialized"})
_GOING: Final = frozenset({"running", "paused", "stopping", "restarting", "up"})
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
    """One container as its engine has it. `ports` maps the guest's to the host's.

    `begun` says whether it was ever let go, `running` whether it runs now; `code` is None where the
    engine does not know how it ended. `pid` is 0 where none is told.
    """

    name: str
    begun: bool
    running: bool
    pid: int = 0
    code: int | None = None
    oom: bool = False
    error: str = ""
    ports: Mapping[int, int] = field(default_factory=dict)


class ContainerSample(Struct, frozen=True, kw_only=True):
    """What one container uses. `cpu_seconds` is what it has had so far, None where only a share of
    the last moment is told, in percent of one processor.
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
    host_port: str = ""


class _Network(Struct, rename="pascal"):
    ports: dict[str, list[_Binding] | None] | None = None


class _Inspected(Struct):
    """Docker's names first, then what a3s-box has beside them."""

    state: _StateDocument = field(name="State")
    docker_name: str = field(default="", name="Name")
    network: _Network | None = field(default=None, name="NetworkSettings")
    name: str = ""
    pid: int | None = None
    port_map: list[str] = field(default_factory=list)


def states(data: bytes) -> dict[str, ContainerState]:
    """What ``inspect`` says, by the containers' names."""
    found = msgspec.json.decode(data or b"[]", type=list[_Inspected])
    return {state.name: state for state in map(_state, found)}


def _state(found: _Inspected) -> ContainerState:
    said = found.state
    status = said.status.lower()
    return ContainerState(
        name=(found.docker_name or found.name).removeprefix("/"),
        begun=status not in _UNBEGUN,
        running=said.running or status in _GOING,
        pid=said.pid or found.pid or 0,
        code=said.exit_code,
        oom=said.oom_killed,
        error=said.error,
        ports=_ports(found),
    )


def _ports(found: _Inspected) -> dict[int, int]:
    pairs = [port_pair(entry.removesuffix("/tcp")) for entry in found.port_map]
    ports = {guest: host for host, guest in pairs if host}
    bound = found.network.ports if found.network and found.network.ports else {}
    for guest, bindings in bound.items():
        number, _, protocol = guest.partition("/")
        hosts = [item.host_port for item in bindings or () if item.host_port.isdecimal()]
        if hosts and protocol in ("", "tcp"):
            ports[int(number)] = int(hosts[0])
    return ports


# ── ps ───────────────────────────────────────────────────────────────────────────────────


def listed(data: bytes) -> dict[str, bool]:
    """The containers that ``ps -a`` lists, by name: whether each runs."""
    found = {}
    for item in _objects(data):
        names = item.get("Names") or item.get("Name") or item.get("name") or ""
        name = names[0] if isinstance(names, list) and names else str(names).partition(",")[0]
        status = str(item.get("State") or item.get("Status") or item.get("status") or "").lower()
        if not name:
            raise ValueError("it lists a container without a name")
        found[str(name).removeprefix("/")] = (status.split() or [""])[0] in _GOING
    return found


def _objects(data: bytes) -> list[dict[str, Any]]:
    """The objects of an array, or of lines."""
    text = data.strip()
    if text.startswith(b"["):
        return msgspec.json.decode(text, type=list[dict[str, Any]])
    return msgspec.json.Decoder(dict[str, Any]).decode_lines(text) if text else []


# ── stats ────────────────────────────────────────────────────────────────────────────────


def samples(data: bytes) -> dict[str, ContainerSample]:
    """What ``stats --no-stream`` says, by the containers' names: JSON, or a table."""
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
    found: dict[str, ContainerSample] = {}
    heads: list[str] = []
    for line in text.splitlines():
        cells = [cell for cell in _COLUMN.split(line.strip()) if cell]
        if "NAME" in cells:
            heads = cells
        elif heads and len(cells) == len(heads):
            row = dict(zip(heads, cells, strict=True))
            memory = row.get("MEM USAGE / LIMIT", "").partition("/")[0]
            found[row["NAME"]] = ContainerSample(
                cpu_percent=_percent(row.get("CPU %", "")),
                cpu_seconds=None,
                memory_bytes=_bytes(memory),
            )
    return found


def _percent(text: str) -> float:
    try:
        return float(text.strip().removesuffix("%"))
    except ValueError:
        return 0.0  # "--": it has just ended


def _bytes(text: str) -> int:
    """Podman counts in thousands (``kB``), docker in 1,024 (``KiB``)."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        return 0
    step = 1024 if match[3] else 1000
    power: int = step ** " KMGT".index(match[2].upper() or " ")
    return round(float(match[1]) * power)


def _seconds(text: str) -> float:
    """Go's durations: ``1m2.5s``, ``40.2ms``."""
    return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION.findall(text))


def usage(
    before: tuple[float, ContainerSample] | None, after: tuple[float, ContainerSample]
) -> Usage:
    """What a container uses now, from two samples with their times in seconds of one clock."""
    at, sample = after
    share = sample.cpu_percent if sample.cpu_seconds is None else 0.0
    if before is not None and sample.cpu_seconds is not None:
        then, earlier = before
        if earlier.cpu_seconds is not None and at > then:
            used = max(0.0, sample.cpu_seconds - earlier.cpu_seconds)
            share = round(100 * used / (at - then), 1)
    return Usage(cpu_percent=share, memory_bytes=sample.memory_bytes)


# ── complaints ───────────────────────────────────────────────────────────────────────────


def complaint(stderr: str) -> str:
    """The line that says what went wrong: the last that calls itself an error, else the last."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR.match(line)]
    said = (errors or lines or ["it gave no reason"])[-1]
    return _ERROR.sub("", said).strip('"')


def is_taken_port(stderr: str) -> bool:
    """Whether a container could not start because somebody has its port."""
    return "address already in use" in stderr or "port is already allocated" in stderr


def is_missing(stderr: str) -> bool:
    """Whether a call failed because there is no such container. In these words alone: whoever takes
    another failure for it gives up an instance that lives.
    """
    return _MISSING.search(stderr) is not None


def is_name_taken(stderr: str) -> bool:
    """Whether a container could not be made because there is one of that name."""
    return "already in use" in stderr and "name" in stderr
