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
import ssl
from collections.abc import AsyncIterator
from collections.abc import Set as AbstractSet
from typing import Final

from bridge.descriptors import is_exhausted
from bridge.http_exchange import Channel, failure
from bridge.settings import Probe
from bridge.version import VERSION

_GOOD_BELOW: Final = 400
NOT_SENT: Final = "the probe could not be sent: the Box has no descriptor left"
"""The reason if the fault is the Box's own, and says nothing about the instance."""
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
        self._host = address
        self._numeric = _is_numeric(self._host)  # else its address must be resolved first
        self._sockets: dict[int, socket.socket] = {}
        self._contexts: dict[bool, ssl.SSLContext] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, address: str) -> AsyncIterator[Prober]:
        """A Prober for instances that serve at `address`."""
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
        """None if the instance on `port` passes, else the reason. Takes `probe.timeout` at most,
        and raises nothing for what an instance can do.
        """
        try:
            if probe.path is None:
                return await self._tcp(port, probe.timeout)
            return await self._http(probe, port)
        except TimeoutError:
            return f"no answer within {probe.timeout:g} s"
        except Exception as exc:  # TLS and the resolver have many kinds
            if is_exhausted(exc):
                return NOT_SENT
            return failure(exc, self._authority(port))

    def _authority(self, port: int) -> str:
        return f"[{self._host}]:{port}" if ":" in self._host else f"{self._host}:{port}"

    async def _http(self, probe: Probe, port: int) -> str | None:
        """Send one request; the status decides, and the rest of the response is not read."""
        deadline = asyncio.get_running_loop().time() + probe.timeout
        channel = await Channel.open(
            self._host,
            port,
            deadline=deadline,
            tls=None if probe.https is None else self._tls(verify=probe.verify),
            server_name=probe.host.partition(":")[0],
            make_socket=self._socket,
        )
        try:
            response = await channel.send(
                probe_request(probe, self._authority(port)), deadline=deadline
            )
        finally:
            channel.close()
        return None if response.status < _GOOD_BELOW else f"HTTP {response.status} on {probe.path}"

    def _tls(self, *, verify: bool) -> ssl.SSLContext:
        """A context, made once: it loads the system's authorities."""
        if verify not in self._contexts:
            context = ssl.create_default_context()
            if not verify:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            self._contexts[verify] = context
        return self._contexts[verify]

    async def _tcp(self, port: int, timeout: float) -> str | None:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        with self._socket(family, socket.SOCK_STREAM, 0) as probe:
            # On one host this connects at once, without a timer: it takes a third of the time.
            if self._numeric and probe.connect_ex((self._host, port)) == 0:
                return None
            async with asyncio.timeout(timeout):
                await asyncio.get_running_loop().sock_connect(probe, (self._host, port))
        return None

    def _socket(self, family: int, kind: int, protocol: int) -> socket.socket:
        """A socket whose local port is known before it connects."""
        probe = socket.socket(family, kind, protocol)
        probe.setblocking(False)
        probe.bind(("", 0))
        self._sockets[probe.getsockname()[1]] = probe
        return probe


def probe_request(probe: Probe, authority: str) -> bytes:
    """The bytes of an HTTP probe. The path is sent as it was given."""
    headers = {
        "Host": probe.host or authority,
        "User-Agent": f"box-bridge/{VERSION}",
        "Accept": "*/*",
        "Connection": "close",
    }
    given = {name.lower() for name in probe.headers}
    lines = [f"GET {probe.path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items() if name.lower() not in given]
    lines += [f"{name}: {value}" for name, value in probe.headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
