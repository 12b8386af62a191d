"""Connecting one client: for how long each server is tried, and when a retry is useless."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from nats.aio.client import Srv

from bridge.bus.core.connect_errors import connect_failure, is_refusal, is_unreachable
from bridge.bus.core.credentials import credentials, logins
from bridge.bus.core.nats_client import GuardedClient
from bridge.errors import ConnectFailed
from bridge.observe import Metrics
from bridge.settings import NatsConfig
from bridge.tasks import raise_if_cancelled

_PING_INTERVAL: Final = 2  # seconds; with two outstanding, a dead peer is detected within 6 s
_RECONNECT_WAIT: Final = 0.25  # seconds between attempts at one server
_SERVER: Final = 1.0  # seconds that each server gets at least to complete a connection
_UNREACHABLE: Final = 0.4  # seconds; while it waits for the first connection
RECONNECT_MAX: Final = 2.0  # seconds between clients, at most

Waiting = Callable[[ConnectFailed], None]
"""Called with the failure of an attempt to connect, once for each reason. It must not block."""


async def connect_eventually(
    connect: Callable[[float, float], Awaitable[None]], waiting: Waiting, give_up: asyncio.Event
) -> None:
    """Call `connect` with its patience until it succeeds, however long that takes.

    Raises ConnectFailed if a server refuses, or when `give_up` is set.
    """
    reason = ""
    for pause in itertools.chain((0.25, 0.5, 1.0), itertools.repeat(RECONNECT_MAX)):
        try:
            await connect(_SERVER, _UNREACHABLE)
        except ConnectFailed as exc:
            raise_if_cancelled()
            if exc.refused or give_up.is_set():
                raise
            if exc.reason != reason:
                reason = exc.reason
                waiting(exc)
        else:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await give_up.wait()


async def connect_client(
    settings: NatsConfig,
    *,
    name: str,
    metrics: Metrics,
    discovered: Sequence[Srv],
    on_end: Callable[[GuardedClient], None],
    on_error: Callable[[Exception], None],
    patience: float,
    unreachable: float | None,
) -> GuardedClient:
    """A new client that is connected.

    Raises ConnectFailed after `patience` seconds, or 1 s for each server if that is longer, or when
    each server has refused; and ConfigError. The servers share the time: one that accepts and is
    silent leaves the others theirs. After `unreachable` seconds in which each server was tried
    twice in vain, it raises, too.
    """
    servers = len(settings.urls) + len(discovered)
    patience = max(patience, _SERVER * servers)
    attempts = _Attempts(servers, len(settings.urls), unreachable)
    login = credentials(settings)
    client = GuardedClient(metrics.count, on_end, discovered, logins(settings), patience / servers)
    connected = False

    async def take_error(exc: Exception) -> None:
        if connected:
            on_error(exc)
        else:
            attempts.fail(exc)

    try:
        async with asyncio.timeout(patience):
            await client.connect(
                settings.urls,
                name=name,
                error_cb=take_error,
                ping_interval=_PING_INTERVAL,
                max_outstanding_pings=2,
                connect_timeout=patience / servers,  # type: ignore[arg-type]
                reconnect_time_wait=_RECONNECT_WAIT,  # type: ignore[arg-type]
                max_reconnect_attempts=-1,
                inbox_prefix=settings.inbox_prefix,
                **login,
            )
        client.on_error, connected = on_error, True
    except Exception as exc:  # nats-py raises whatever a peer can provoke
        # The server's own message ("Authorization Violation") comes before its hang-up.
        errors = [*attempts.errors, exc]
        raise connect_failure(
            settings.urls, errors, seconds=patience, context=settings.context
        ) from exc
    finally:
        if not connected:
            await client.close()
    return client


class _Attempts:
    """The failures of one client until it is connected: `fail` raises when a retry is useless."""

    def __init__(self, servers: int, urls: int, unreachable: float | None) -> None:
        self.errors: list[Exception] = []
        self._servers = servers
        self._urls = urls
        self._unreachable = unreachable
        self._started = time.monotonic()

    def fail(self, exc: Exception) -> None:
        self.errors.append(exc)
        if sum(map(is_refusal, self.errors)) > self._urls:
            raise exc
        limit = self._unreachable
        waited = limit is not None and time.monotonic() - self._started > limit
        tried_twice = len(self.errors) >= 2 * self._servers
        if waited and tried_twice and all(map(is_unreachable, self.errors)):
            raise exc
