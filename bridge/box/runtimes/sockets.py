"""TCP ports of this host: which are free, who listens, and how many connections each has.

Connections come from the kernel in one pass for all instances (sock_diag.py), or from its tables
where sock_diag is not available. psutil would map each socket to its process, and read every
descriptor of every process for that; once a second, for a whole host, the ports are enough.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections import Counter
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Final

import psutil

from bridge.box.runtimes import sock_diag
from bridge.box.runtimes.foreign_errors import mapped_errors
from bridge.box.runtimes.sock_diag import Connection

LISTENING: Final = "0A"
"""States in the kernel's tables: see include/net/tcp_states.h."""
ESTABLISHED: Final = "01"

_UNSUPPORTED: Final = (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)


def connections() -> list[Connection]:
    """The established connections of this host. Raises InstanceError if they cannot be read."""
    try:
        return sock_diag.established()
    except OSError:  # a kernel without it, or a sandbox that forbids it
        with mapped_errors("the connections of this host cannot be read"):
            return list(parse(read_tables("self"), ESTABLISHED))


def count_by_port(
    pairs: Iterable[Connection], *, without: AbstractSet[int] = frozenset()
) -> Counter[int]:
    """How many connections each local port has.

    Connections from the remote ports in `without`, the Box's own probes, do not count.
    """
    return Counter(local for local, remote in pairs if remote not in without)


def parse(lines: Iterable[str], state: str) -> Iterator[Connection]:
    """The ports of the sockets in `state`, from the `lines` of ``/proc/net/tcp``."""
    for line in lines:
        fields = line.split(None, 4)
        if len(fields) > 3 and fields[3] == state:
            local, remote = (int(field.rpartition(":")[2], 16) for field in fields[1:3])
            yield local, remote


def read_tables(pid: int | str) -> Iterator[str]:
    """The lines of the TCP tables, IPv4 and IPv6, of the network that the process `pid` is in."""
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError), Path(f"/proc/{pid}/net/{name}").open() as file:
            yield from file


def is_free(port: int) -> bool:
    """Whether no process listens on `port`, on any address of this host.

    Raises InstanceError if that cannot be checked.
    """
    with mapped_errors(f"port {port} cannot be checked"):
        for family in (socket.AF_INET, socket.AF_INET6):
            probe = _open_socket(family)
            if probe is None:
                continue
            with probe:
                try:
                    probe.bind(("", port))
                except OSError:
                    return False
    return True


def serves(pids: Iterable[int], port: int) -> bool:
    """Whether one of exactly these processes listens on `port`; stops at the first that does."""
    try:
        wanted = {f"socket:[{inode}]" for local, inode in sock_diag.listening() if local == port}
    except OSError:
        return any(_is_listening(pid, port) for pid in pids)
    return bool(wanted) and any(_holds(pid, wanted) for pid in pids)


def holder(port: int) -> str:
    """The process that listens on `port`, for a message: name and pid, where permitted."""
    with contextlib.suppress(psutil.Error, OSError):
        for conn in psutil.net_connections(kind="tcp"):
            if conn.pid and _listens_on(conn, port):
                return f"{psutil.Process(conn.pid).name()} (pid {conn.pid})"
    return "another process"


def _holds(pid: int, sockets: AbstractSet[str]) -> bool:
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as files:
        return any(_target(Path(file.path)) in sockets for file in files)
    return False


def _target(file: Path) -> str:
    try:
        return str(file.readlink())
    except OSError:  # closed in the meantime
        return ""


def _is_listening(pid: int, port: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(_listens_on(conn, port) for conn in psutil.Process(pid).net_connections("tcp"))
    return False


def _listens_on(conn: Any, port: int) -> bool:
    return bool(conn.status == psutil.CONN_LISTEN and conn.laddr and conn.laddr.port == port)


def _open_socket(family: int) -> socket.socket | None:
    """A socket to bind; None if this host lacks the address family."""
    try:
        probe = socket.socket(family, socket.SOCK_STREAM)
    except OSError as exc:
        if exc.errno in _UNSUPPORTED:
            return None
        raise
    # Connections that linger in TIME_WAIT do not keep a server from listening.
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return probe
