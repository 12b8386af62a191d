"""The HTTP server of the gateway daemon: uvicorn in the daemon's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import uvicorn
from msgspec import Struct

from bridge.bus.core.connection import Connection
from bridge.descriptors import raise_limit
from bridge.errors import ConfigError
from bridge.gateway.http.app import build_app
from bridge.gateway.http.observation import Observations
from bridge.gateway.http.scale import HttpScale
from bridge.gateway.http.silence import limit_silence
from bridge.gateway.routes.table import RouteTable
from bridge.tasks import task_scope

_SILENCE: Final = 10.0  # seconds that a connection has for its first request
_BACKLOG: Final = 2048
_LAST_ANSWERS: Final = 5  # seconds for the requests in flight when the daemon stops
_MIN_TOKEN: Final = 16  # letters


class GatewayConfig(Struct, frozen=True, kw_only=True):
    """Where the daemon listens, and whom it answers.

    `tokens_file` has a token on each line; it must be readable by its owner alone. `stale` is the
    age of the routes in seconds from which ``/readyz`` answers 503.
    """

    host: str = "127.0.0.1"
    port: int = 9090
    tokens_file: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    stale: float = 30.0

    def check(self) -> None:
        """Raise ConfigError if anybody on the network could scale the fleet."""
        if self.tokens_file or self.client_ca or _is_loopback(self.host):
            return
        raise ConfigError(
            "[gateway] listen",
            f"{self.host} can be reached from other machines: set tokens_file (--tokens-file) or "
            "client_ca (--client-ca), or listen on 127.0.0.1",
        )


@contextlib.asynccontextmanager
async def serve(connection: Connection, config: GatewayConfig) -> AsyncIterator[GatewayServer]:
    """The daemon, which answers inside the block.

    Raises ConfigError, and what `RouteTable.open` raises.
    """
    config.check()
    tokens = read_tokens(config.tokens_file) if config.tokens_file else ()
    with _listener(config) as listening:
        raise_limit()
        async with (
            RouteTable.open(connection) as table,
            Observations.open(connection, table) as observations,
            task_scope() as tasks,
        ):
            server = GatewayServer(connection, observations, config, tokens, listening)
            running = tasks.create_task(server.run(), name="http")
            await server.wait_started(running)
            try:
                yield server
            finally:
                server.stop()
                await asyncio.wait([running])


class GatewayServer:
    """The running server. `url` is where it listens."""

    def __init__(
        self,
        connection: Connection,
        observations: Observations,
        config: GatewayConfig,
        tokens: Sequence[str],
        listening: socket.socket,
    ) -> None:
        app = build_app(
            HttpScale(connection, observations), observations, tokens=tokens, stale=config.stale
        )
        settings = uvicorn.Config(
            app,
            http=limit_silence(_SILENCE),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=_LAST_ANSWERS,
            **_tls(config),
        )
        self._server = _Server(settings)
        self._listening = listening
        host, port = listening.getsockname()[:2]
        scheme = "https" if config.certificate else "http"
        self.url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    async def run(self) -> None:
        """Serve until `stop`."""
        await self._server.serve(sockets=[self._listening])

    async def wait_started(self, running: asyncio.Task[None]) -> None:
        """Return when it answers, or has failed."""
        await asyncio.wait((running, self._server.answering), return_when=asyncio.FIRST_COMPLETED)

    def stop(self) -> None:
        """Answer what is in flight, and end."""
        self._server.should_exit = True


class _Server(uvicorn.Server):
    """uvicorn's server, which leaves signals to its owner. `answering` is done once it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.answering: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.answering.set_result(None)


def read_tokens(path: Path) -> tuple[str, ...]:
    """The tokens of a file, a line each. Raises ConfigError."""
    where = f"[gateway] tokens_file {path}"
    try:
        mode = path.stat().st_mode
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(where, f"cannot be read: {exc}") from exc
    if mode & 0o077:
        raise ConfigError(where, f"others can read it: `chmod 600 {path}`")
    tokens = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not tokens:
        raise ConfigError(where, "it has no token: `openssl rand -hex 32` prints one")
    for token in tokens:
        if len(token) < _MIN_TOKEN or not token.isascii() or " " in token:
            raise ConfigError(where, f"a token has {_MIN_TOKEN} or more ASCII letters, no space")
    return tokens


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextlib.contextmanager
def _listener(config: GatewayConfig) -> Iterator[socket.socket]:
    """A socket that listens. Raises ConfigError."""
    where = f"{config.host}:{config.port}"
    try:
        family = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server(
            (config.host, config.port), family=family, backlog=_BACKLOG
        )
    except (OSError, OverflowError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise ConfigError("[gateway] listen", f"{where} cannot be used: {reason}") from exc
    with listening:
        yield listening


def _tls(config: GatewayConfig) -> dict[str, Any]:
    """uvicorn's settings for TLS. Raises ConfigError."""
    if config.certificate is None:
        if config.key or config.client_ca:
            raise ConfigError("[gateway] certificate", "needed beside key and client_ca")
        return {}
    settings: dict[str, Any] = {"ssl_certfile": config.certificate}
    if config.key:
        settings["ssl_keyfile"] = config.key
    if config.client_ca:
        settings |= {"ssl_ca_certs": str(config.client_ca), "ssl_cert_reqs": ssl.CERT_REQUIRED}
    return settings
