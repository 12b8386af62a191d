"""Asking an instance whether it is ready, and still healthy.

The Box's own probes must not count as the instance's requests: every probe is sent from a port
that `Prober` knows, and the load sample leaves those out. They are sent without an HTTP client, for
which 500 instances are a twentieth of a core: of the answer only the status is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import math
import re
import socket
from collections.abc import AsyncIterator
from collections.abc import Set as AbstractSet
from typing import Final
from urllib.parse import quote

from bridge.settings import Probe

_LOOPBACKS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104
_GOOD_BELOW: Final = 400
_FINAL: Final = 200  # answers below are interim
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-5]\d\d)(?!\S)")
_MAX_HEAD: Final = 16 * 1024  # bytes
_PLAIN: Final = "/?&=:;,@!$'()*+%~"  # in a path, beside letters and digits
_REQUEST: Final = (
    "GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: box-bridge\r\nAccept: */*\r\n"
    "Connection: close\r\n\r\n"
)
BEATS: Final = 20  # moments in an interval at which instances are probed


def until_next(now: float, interval: float) -> float:
    """Seconds to wait before an instance is probed again: `interval`, or up to a twentieth more, so
    that probes of many instances fall together. Five hundred in 5 s are 4 wake-ups a second, not
    100.
    """
    beat = interval / BEATS
    return math.ceil((now + interval) / beat) * beat - now


def _is_numeric(host: str) -> bool:
    try:
        return bool(ipaddress.ip_address(host))
    except ValueError:
        return False


class Prober:
    """Probes instances on this host; `async with Prober.open(address)`.

    `ports` are the local ports from which a probe is, or has just been, under way: a view that
    knows each probe before it connects.
    """

    def __init__(self, address: str) -> None:
        self._host = _LOOPBACKS.get(address, address)
        self._numeric = _is_numeric(self._host)  # else it must be looked up first
        self._sockets: dict[int, socket.socket] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, address: str) -> AsyncIterator[Prober]:
        """A Prober of instances that serve at `address`."""
        yield cls(address)

    @property
    def ports(self) -> AbstractSet[int]:
        return self._sockets.keys()

    def forget_closed(self) -> None:
        """Forget the ports of probes that are over. Call it after each load sample."""
        self._sockets = {
            port: probe for port, probe in self._sockets.items() if probe.fileno() != -1
        }

    async def probe(self, probe: Probe, port: int) -> str | None:
        """None if the instance on `port` passes, else why not. Takes `probe.timeout` at most."""
        try:
            if probe.http is None:
                return await self._tcp(port, probe.timeout)
            async with asyncio.timeout(probe.timeout):
                return await self._http(probe.http, port)
        except TimeoutError:
            return f"no answer within {probe.timeout:g} s"
        except OSError as exc:
            return f"{type(exc).__name__}: {exc}"

    async def _http(self, path: str, port: int) -> str | None:
        host = f"[{self._host}]" if ":" in self._host else self._host
        asked = quote(path.partition("#")[0], safe=_PLAIN)
        with self._fresh(port) as probe:
            await self._connect(probe, port)
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(probe, _REQUEST.format(asked, f"{host}:{port}").encode())
            status = await _status(probe)
            with contextlib.suppress(OSError):  # what it has sent already, else it hears of a reset
                probe.recv(_MAX_HEAD)
        return None if status < _GOOD_BELOW else f"HTTP {status} on {path}"

    async def _tcp(self, port: int, timeout: float) -> str | None:
        with self._fresh(port) as probe:
            # On one host the answer is there at once: no timer and no wait, in a third of the time.
            if self._numeric and probe.connect_ex((self._host, port)) == 0:
                return None
            async with asyncio.timeout(timeout):
                await self._connect(probe, port)
        return None

    async def _connect(self, probe: socket.socket, port: int) -> None:
        await asyncio.get_running_loop().sock_connect(probe, (self._host, port))

    def _fresh(self, port: int) -> socket.socket:
        """A socket whose local port is known before it connects."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        probe = socket.socket(family, socket.SOCK_STREAM)
        probe.setblocking(False)
        probe.bind(("", 0))
        self._sockets[probe.getsockname()[1]] = probe
        return probe


async def _status(probe: socket.socket) -> int:
    """The status that an HTTP server answers with; raises ConnectionError if that is none."""
    loop, data = asyncio.get_running_loop(), b""
    while len(data) <= _MAX_HEAD:
        line, ended, _ = data.partition(b"\n")
        if ended:
            found = _STATUS.match(line)
            if found is None:
                raise ConnectionError(f"not an answer of HTTP: {line[:40]!r}")
            if (status := int(found[1])) >= _FINAL:
                return status
            _, whole, rest = data.partition(b"\r\n\r\n")
            if whole:  # that was an interim one
                data = rest
                continue
        more = await loop.sock_recv(probe, _MAX_HEAD)
        if not more:
            raise ConnectionError("it hung up without an answer")
        data += more
    raise ConnectionError("its answer does not end")
