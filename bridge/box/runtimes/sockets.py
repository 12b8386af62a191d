"""Who is connected to which port, and who listens there.

Connections are read off the kernel in one pass for all instances (sock_diag.py; where that is not
to be had, its tables): psutil's table maps each socket to its process, which means reading every
descriptor of every process; once a second for a whole host only the ports matter.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections import Counter
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Final

import psutil

from bridge.box.runtimes import sock_diag
from bridge.box.runtimes.sock_diag import Connection

_TABLES: Final = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_ESTABLISHED: Final = "01"


def connections() -> list[Connection]:
    """The established connections of this host."""
    try:
        return sock_diag.established()
    except OSError:  # a kernel without it, or a sandbox that forbids it
        return list(parse(read_tables()))


def established(
    found: Iterable[Connection], *, without: AbstractSet[int] = frozenset()
) -> Counter[int]:
    """How many of the connections `found` are established to each local port.

    Those from the remote ports in `without` (the Box's own probes) do not count.
    """
    return Counter(local for local, remote in found if remote not in without)


def parse(lines: Iterable[str]) -> Iterator[Connection]:
    """The established connections among the `lines` of ``/proc/net/tcp``."""
    for line in lines:
        fields = line.split(None, 4)
        if len(fields) > 3 and fields[3] == _ESTABLISHED:
            local, remote = (int(field.rpartition(":")[2], 16) for field in fields[1:3])
            yield local, remote


def read_tables() -> Iterator[str]:
    """The lines of the kernel's TCP tables, IPv4 and IPv6."""
    for table in _TABLES:
        with contextlib.suppress(FileNotFoundError), table.open() as file:
            yield from file


def is_free(port: int) -> bool:
    """Whether nobody listens on `port`, on any address of this host."""
    for family, address in ((socket.AF_INET, ""), (socket.AF_INET6, "")):
        with contextlib.suppress(_Unsupported), _socket(family) as probe:
            try:
                probe.bind((address, port))
            except OSError:
                return False
    return True


def serves(pids: Iterable[int], port: int) -> bool:
    """Whether one of these very processes listens on `port`; asks for no more than it takes to find
    one.
    """
    try:
        wanted = {f"socket:[{inode}]" for local, inode in sock_diag.listening() if local == port}
    except OSError:
        return any(_is_listening(pid, port) for pid in pids)
    return bool(wanted) and any(_holds(pid, wanted) for pid in pids)


def _holds(pid: int, sockets: AbstractSet[str]) -> bool:
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as files:
        return any(_target(Path(file.path)) in sockets for file in files)
    return False


def _target(file: Path) -> str:
    try:
        return str(file.readlink())
    except OSError:  # closed meanwhile
        return ""


def _is_listening(pid: int, port: int) -> bool:
    with contextlib.suppress(psutil.Error):
        found = psutil.Process(pid).net_connections(kind="tcp")
        return any(_serves(conn, port) for conn in found)
    return False


def holder(port: int) -> str:
    """Who listens on `port`, for a message: a name and a pid, where we may know."""
    with contextlib.suppress(psutil.Error, OSError):
        for conn in psutil.net_connections(kind="tcp"):
            if conn.pid and _serves(conn, port):
                return f"{psutil.Process(conn.pid).name()} (pid {conn.pid})"
    return "another process"


def _serves(conn: Any, port: int) -> bool:
    return bool(conn.status == psutil.CONN_LISTEN and conn.laddr and conn.laddr.port == port)


class _Unsupported(OSError):
    """This machine has no such address family."""


def _socket(family: int) -> socket.socket:
    try:
        probe = socket.socket(family, socket.SOCK_STREAM)
    except OSError as exc:
        raise _Unsupported from exc
    # Connections that linger in TIME_WAIT do not keep a server from listening.
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return probe
