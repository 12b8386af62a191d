"""What the kernel knows of a container, read by the pid of its main process.

The kernel knows more than the engines report: which connections are established inside, which
ports have listeners, and whether memory ran out (podman under cgroups v1 does not notice that).
Where the pid belongs to another host or to a virtual machine, only the engine's report counts.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Final

from bridge.box.runtimes.sock_diag import Connection
from bridge.box.runtimes.sockets import ESTABLISHED, LISTENING, parse, read_tables

_MOUNT: Final = Path("/sys/fs/cgroup")
_KILLS: Final = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


def has_own_network(pid: int) -> bool:
    """Whether `pid` is in a network namespace other than this process's."""
    try:
        return os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")  # noqa: PTH115
    except OSError:
        return False


def listens(pid: int, port: int) -> bool:
    """Whether a process in the network of `pid` listens on `port`."""
    return any(local == port for local, _ in _sockets(pid, LISTENING))


def connections(pid: int, port: int, without: AbstractSet[int]) -> int:
    """How many connections to `port` are established in the network of `pid`.

    Connections from the ports in `without` do not count.
    """
    pairs = _sockets(pid, ESTABLISHED)
    return sum(local == port and remote not in without for local, remote in pairs)


def memory_events(pid: int) -> Path | None:
    """The file that counts the out-of-memory kills in the control group of `pid`, if it is there.

    None as well where the file cannot be found or read: the engine's report counts then.
    """
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        groups = {names: path for _, names, path in (line.split(":", 2) for line in lines)}
        file = _MOUNT / groups.get("", "").lstrip("/") / "memory.events"
        for names, path in groups.items():
            if "memory" in names.split(","):
                file = _MOUNT / "memory" / path.lstrip("/") / "memory.oom_control"
        return file if file.exists() else None
    except (OSError, ValueError):  # the process has ended; or a group's name is not UTF-8
        return None


def oom_kills(events: Path | None) -> int:
    """How often memory has run out; 0 where that is unknown, or no longer known."""
    try:
        match = _KILLS.search(events.read_text()) if events else None
    except OSError:
        return 0
    return int(match[1]) if match else 0


def _sockets(pid: int, state: str) -> Iterator[Connection]:
    with contextlib.suppress(OSError):  # the process has ended
        yield from parse(read_tables(pid), state)
