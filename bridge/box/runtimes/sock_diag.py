"""Which TCP connections are established, and who listens, asked of the kernel (sock_diag(7)).

Reading ``/proc/net/tcp`` has the kernel write a line for each socket of the host, and every probe
that was answered leaves one in TIME_WAIT for a minute: with 500 instances, six thousand lines a
second to be thrown away. Here the kernel picks those that are established, and answers in binary:
0.5 ms instead of 10.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from typing import Final

Connection = tuple[int, int]
"""The local and the remote port of a connection."""

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_REQUEST_DUMP: Final = 0x001 | 0x300
_ERROR: Final = 2
_DONE: Final = 3
_ESTABLISHED: Final = 1 << 1
_LISTENS: Final = 1 << 10

_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, port id
_QUERY: Final = struct.Struct("=BBBBI48x")  # family, protocol, extensions, -, states, any socket
_PORTS: Final = struct.Struct("!4xHH")  # family, state, timer, retransmits; local and remote port
_INODE: Final = struct.Struct("=68xI")
_ERRNO: Final = struct.Struct("=i")
_ANSWER: Final = 64 * 1024  # bytes


def established() -> list[Connection]:
    """The established connections of this host, IPv4 and IPv6; raises OSError where the kernel does
    not tell.
    """
    return [_PORTS.unpack_from(found) for found in _sockets(_ESTABLISHED)]


def listening() -> list[tuple[int, int]]:
    """The ports of this host on which somebody listens, and the inodes of these sockets, by which
    /proc/<pid>/fd names them; raises OSError as `established` does.
    """
    return [
        (_PORTS.unpack_from(found)[0], _INODE.unpack_from(found)[0]) for found in _sockets(_LISTENS)
    ]


def _sockets(states: int) -> Iterator[bytes]:
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG
    ) as kernel:
        for family in (socket.AF_INET, socket.AF_INET6):
            yield from _dump(kernel, family, states)


def _dump(kernel: socket.socket, family: int, states: int) -> Iterator[bytes]:
    query = _QUERY.pack(family, socket.IPPROTO_TCP, 0, 0, states)
    size = _HEADER.size + len(query)
    kernel.send(_HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, family, 0) + query)
    while True:
        answer = kernel.recv(_ANSWER)
        at = 0
        while at < len(answer):
            length, kind, _, _, _ = _HEADER.unpack_from(answer, at)
            body = at + _HEADER.size
            if kind == _DONE:
                return
            if kind == _ERROR:
                number = -_ERRNO.unpack_from(answer, body)[0]
                raise OSError(number, os.strerror(number))
            yield answer[body : at + length]
            at += (length + 3) & ~3  # NLMSG_ALIGN
