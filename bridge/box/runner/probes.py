"""Probing instances: whether one is ready, and whether it is still healthy.

The Box's own probes must not count as the instance's requests: every probe is sent from a port that
`Prober` knows, and the load sample ignores those ports.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import math
import socket
from collections.abc import AsyncIterator
from collections.abc import Set as AbstractSet
from typing import Any, Final

import aiohttp

from bridge.settings import Probe

_LOOPBACKS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104
_GOOD_BELOW: Final = 400
BEATS: Final = 20  # points in an interval at which instances are probed


def until_next(now: float, interval: float) -> float:
    """Seconds until the next probe of an instance: `interval`, or up to a twentieth more.

    So the probes of many instances fall together: 500 instances with an interval of 5 s cost 4
    wake-ups a second, not 100.
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

    `ports` are the local ports of probes under way or just over. It is a live view, and has each
    port before the probe connects.
    """

    def __init__(self, address: str) -> None:
        self._host = _LOOPBACKS.get(address, address)
        self._numeric = _is_numeric(self._host)  # else its address must be resolved first
        self._sockets: dict[int, socket.socket] = {}
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, address: str) -> AsyncIterator[Prober]:
        """A Prober for instances that serve at `address`."""
        prober = cls(address)
        connector = aiohttp.TCPConnector(
            force_close=True, limit=0, socket_factory=prober._socket, happy_eyeballs_delay=None
        )
        async with aiohttp.ClientSession(connector=connector) as session:
            prober._session = session
            yield prober

    @property
    def ports(self) -> AbstractSet[int]:
        return self._sockets.keys()

    def forget_closed(self) -> None:
        """Forget the ports of probes that are over. Call it after each load sample."""
        self._sockets = {
            port: probe for port, probe in self._sockets.items() if probe.fileno() != -1
        }

    async def probe(self, probe: Probe, port: int) -> str | None:
        """Why the probe of `port` fails, None if it passes. Takes `probe.timeout` at most."""
        try:
            if probe.http is None:
                return await self._tcp(port, probe.timeout)
            async with asyncio.timeout(probe.timeout):
                return await self._http(probe.http, port)
        except TimeoutError:
            return f"no answer within {probe.timeout:g} s"
        except (OSError, aiohttp.ClientError) as exc:
            return f"{type(exc).__name__}: {exc}"

    async def _http(self, path: str, port: int) -> str | None:
        assert self._session is not None, "use Prober.open"
        host = f"[{self._host}]" if ":" in self._host else self._host
        url = f"http://{host}:{port}{path}"
        async with self._session.get(url, allow_redirects=False) as response:
            if response.status < _GOOD_BELOW:
                return None
            return f"HTTP {response.status} on {path}"

    async def _tcp(self, port: int, timeout: float) -> str | None:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        with self._socket((family, socket.SOCK_STREAM, 0, "", (self._host, port))) as probe:
            # On one host this connects at once, without a timer: it takes a third of the time.
            if self._numeric and probe.connect_ex((self._host, port)) == 0:
                return None
            async with asyncio.timeout(timeout):
                await asyncio.get_running_loop().sock_connect(probe, (self._host, port))
        return None

    def _socket(self, info: Any) -> socket.socket:
        """A socket whose local port is known before it connects."""
        family, kind, protocol, _, _ = info
        probe = socket.socket(family, kind, protocol)
        probe.setblocking(False)
        probe.bind(("", 0))
        self._sockets[probe.getsockname()[1]] = probe
        return probe
