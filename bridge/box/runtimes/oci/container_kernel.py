"""What the kernel tells of a container, by the pid of its main process.

Engines tell less than the kernel knows: which connections are established inside, who listens
there, and whether memory ran out (podman under cgroups v1 does not notice). Where the pid is not of
this host, or is a virtual machine's, nothing is told, and the engine's word stands.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Final

_MOUNT: Final = Path("/sys/fs/cgroup")
_KILLS: Final = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
_LISTENING: Final = "0A"
_ESTABLISHED: Final = "01"


def has_own_network(pid: int) -> bool:
    """Whether `pid` is in another network than this process, so that its tables are its own."""
    try:
        return os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")  # noqa: PTH115
    except OSError:
        return False


def listens(pid: int, port: int) -> bool:
    """Whether somebody in the network of `pid` listens on `port`."""
    return any(local == port for local, _ in _sockets(pid, _LISTENING))


def connections(pid: int, port: int, without: AbstractSet[int]) -> int:
    """How many connections are established to `port` in the network of `pid`, but for those from
    the ports in `without`.
    """
    pairs = _sockets(pid, _ESTABLISHED)
    return sum(local == port and remote not in without for local, remote in pairs)


def memory_events(pid: int) -> Path | None:
    """The file that counts the out-of-memory kills of the control group that `pid` is in."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return None
    groups = {controllers: path for _, controllers, path in (line.split(":", 2) for line in lines)}
    for controllers, path in groups.items():
        if "memory" in controllers.split(","):
            return _existing(_MOUNT / "memory" / path.lstrip("/") / "memory.oom_control")
    return _existing(_MOUNT / groups.get("", "").lstrip("/") / "memory.events")


def oom_kills(events: Path | None) -> int:
    """How often memory ran out so far; 0 where that is not known, or not any more."""
    try:
        match = _KILLS.search(events.read_text()) if events else None
    except OSError:
        return 0
    return int(match[1]) if match else 0


def _sockets(pid: int, state: str) -> Iterator[tuple[int, int]]:
    """The local and the remote ports of the sockets in `state`, in the network of `pid`."""
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), Path(f"/proc/{pid}/net/{name}").open() as table:
            for line in table:
                fields = line.split(None, 4)
                if len(fields) > 3 and fields[3] == state:
                    yield _port(fields[1]), _port(fields[2])


def _port(address: str) -> int:
    return int(address.rpartition(":")[2], 16)


def _existing(file: Path) -> Path | None:
    return file if file.exists() else None
