"""One connection to NATS that outlives its servers, its client and its peers.

What it promises:

- A subscription made with `listen` lasts until it is closed, over reconnects and over clients
  that the server closed for good (any ``-ERR``): those are rebuilt.
- Nothing is sent while there is no connection. nats-py would buffer a request and send it after
  reconnecting, long after its caller gave up; here the caller gets CutOff at once.
- A request that was sent ends in an answer, NoResponders, or NoReply (the outcome is unknown),
  within its timeout, and at once when the connection breaks.
- A dead peer is noticed within 6 s (a ping every 2 s, two may be missing).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

import nats.errors
import stamina
from nats.js import JetStreamContext
from nats.nuid import NUID

from bridge.bus.client import FrameRefused, GuardedClient
from bridge.bus.message import Handler, Message
from bridge.errors import (
    BusError,
    ConfigError,
    ConnectFailed,
    CutOff,
    NoReply,
    NoResponders,
    NotPermitted,
)
from bridge.observe import Metrics
from bridge.settings import NatsConfig
from bridge.tasks import task_scope

_log = logging.getLogger(__name__)

_PING_INTERVAL: Final = 2  # seconds; with two outstanding, a dead peer is noticed within 6 s
_RECONNECT_WAIT: Final = 0.25  # seconds between attempts at one server
_WATCH_INTERVAL: Final = 1.0  # seconds between looks for a zombie client
_NO_RESPONDERS: Final = 503
_DENIED: Final = re.compile(r'permissions violation for publish to "(.+)"')

Watcher = Callable[[bool], None]
"""Told True after each (re)connect, False when the connection is lost. Must not block."""


class Listener:
    """A subscription; `await close()` ends it."""

    __slots__ = ("_connection", "handler", "queue", "sid", "subject")

    def __init__(self, connection: Connection, subject: str, queue: str, handler: Handler) -> None:
        self._connection = connection
        self.subject = subject
        self.queue = queue
        self.handler = handler
        self.sid = 0

    async def close(self) -> None:
        """End the subscription; messages on their way are dropped."""
        await self._connection._forget(self)


class Connection:
    """See the module. Made by `Connection.open`, never directly."""

    def __init__(self, settings: NatsConfig, name: str, metrics: Metrics) -> None:
        self.settings = settings
        self.subjects = settings.subjects
        self.metrics = metrics
        self._name = name
        self._client = GuardedClient(metrics.count)
        self._client._status = GuardedClient.CLOSED  # until `_connect` puts a live one here
        self._listeners: set[Listener] = set()
        self._watchers: list[Watcher] = []
        self._replies: dict[str, tuple[str, asyncio.Future[Message]]] = {}
        self._tokens = itertools.count(1)
        self._inbox = f"{settings.inbox_prefix}.{NUID().next().decode()}."
        self._up = asyncio.Event()
        self._lost = asyncio.Event()
        self._down_since = time.monotonic()
        self._back_since = float("-inf")
        self._last_error = ""
        self._closing = False

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        settings: NatsConfig,
        *,
        name: str,
        metrics: Metrics | None = None,
        patience: float = 2.0,
    ) -> AsyncIterator[Connection]:
        """Connect, and stay connected until the block ends.

        `name` is what `nats server report connections` shows. A first connection that cannot be
        had within `patience` seconds raises ConnectFailed, a wrong setting ConfigError. If
        staying connected fails in a way that is a bug, the block is cancelled and it raises.
        """
        connection = cls(settings, name, metrics or Metrics())
        try:
            await connection._connect(patience)
            await connection.listen(f"{connection._inbox}*", connection._take_reply)
            async with task_scope() as tasks:
                tasks.create_task(connection._keep(), name="nats-keeper")
                yield connection
        finally:
            await connection._close()

    # ── state ────────────────────────────────────────────────────────────────────────────

    @property
    def connected(self) -> bool:
        """Whether messages can be sent now."""
        return self._up.is_set()

    def cut_off_for(self) -> float:
        """For how many seconds there has been no connection; 0 while there is one."""
        return 0.0 if self.connected else time.monotonic() - self._down_since

    def back_for(self) -> float:
        """For how many seconds the connection has been back after an outage; infinite if there
        was none. Others may take a little longer to come back.
        """
        return time.monotonic() - self._back_since

    async def wait_connected(self) -> None:
        """Return when there is a connection."""
        await self._up.wait()

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Tell `watcher` of each change; call the result to stop that."""
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)

    @property
    def max_payload(self) -> int:
        """The bytes that headers and payload of one message may have, as the server says."""
        return self._client.max_payload

    @property
    def server_info(self) -> Mapping[str, Any]:
        """What the server said of itself when this connection was made."""
        return self._client._server_info

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine, as far as its address tells."""
        url = self._client.connected_url
        host = url.hostname if url else None
        return host in ("localhost", "::1") or str(host).startswith("127.")

    # ── sending and receiving ────────────────────────────────────────────────────────────

    async def listen(self, subject: str, handler: Handler, *, queue: str = "") -> Listener:
        """Give each message on `subject` to `handler` until the Listener is closed."""
        listener = Listener(self, subject, queue, handler)
        self._listeners.add(listener)
        if not self._client.is_closed:
            listener.sid = await self._client.listen(subject, handler, queue)
        return listener

    def publish(
        self,
        subject: str,
        data: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        reply: str = "",
    ) -> None:
        """Send at most once, without an answer. Raises CutOff, or BusError for what cannot be
        sent at all (too large, or the server takes nothing any more).
        """
        if not self._up.is_set():
            raise CutOff(self.cut_off_for())
        try:
            self._client.publish_now(subject, data, reply, headers)
        except (FrameRefused, nats.errors.Error) as exc:
            raise BusError(f"cannot send on {subject}: {exc}") from exc

    def new_inbox(self) -> str:
        """A subject that nobody else knows, beneath this connection's inbox prefix."""
        return f"{self.settings.inbox_prefix}.{NUID().next().decode()}"

    async def request(
        self,
        subject: str,
        data: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 5.0,
    ) -> Message:
        """Ask, and return the one answer.

        Raises CutOff, NoResponders and NotPermitted (nothing was done), NoReply (the outcome is
        unknown).
        """
        token = str(next(self._tokens))
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Message] = loop.create_future()
        self._replies[token] = subject, future
        expiry = loop.call_later(timeout, _expire, future)
        try:
            self.publish(subject, data, headers=headers, reply=self._inbox + token)
            message = await future
        except TimeoutError as exc:
            raise NoReply(subject, timeout) from exc
        finally:
            expiry.cancel()
            self._replies.pop(token, None)
        if message.status == _NO_RESPONDERS and not message.data:
            raise NoResponders(subject)
        return message

    async def flush(self, timeout: float = 5.0) -> None:
        """Return when the server has seen all that was sent. Raises CutOff, NoReply."""
        if not self._up.is_set():
            raise CutOff(self.cut_off_for())
        try:
            # Once is no barrier: the PING can overtake what waits in nats-py's buffer.
            await self._client.flush(timeout=timeout)  # type: ignore[arg-type]
            await self._client.flush(timeout=timeout)  # type: ignore[arg-type]
        except nats.errors.Error as exc:
            raise NoReply("PING", timeout) from exc

    @property
    def jetstream(self) -> JetStreamContext:
        """nats-py's JetStream calls, sent as `request` sends (for the bus package)."""
        domain = self.settings.domain or None
        return JetStreamContext(_Requests(self), domain=domain, timeout=5)  # type: ignore[arg-type]

    def _take_reply(self, message: Message) -> None:
        _, future = self._replies.get(message.subject.rpartition(".")[2], ("", None))
        if future is not None and not future.done():
            future.set_result(message)

    # ── staying connected ────────────────────────────────────────────────────────────────

    async def _connect(self, patience: float) -> None:
        """Connect a new client; raises ConnectFailed after `patience` seconds."""
        client = GuardedClient(self.metrics.count)
        urls = self.settings.urls
        complaints: list[Exception] = []

        async def on_error(exc: Exception) -> None:
            complaints.append(exc)
            await self._on_error(exc)

        try:
            async with asyncio.timeout(patience):
                await client.connect(
                    urls,
                    name=self._name,
                    error_cb=on_error,
                    disconnected_cb=self._on_lost,
                    reconnected_cb=self._on_up,
                    closed_cb=self._on_closed,
                    ping_interval=_PING_INTERVAL,
                    max_outstanding_pings=2,
                    reconnect_time_wait=_RECONNECT_WAIT,  # type: ignore[arg-type]
                    max_reconnect_attempts=1,
                    inbox_prefix=self.settings.inbox_prefix,
                    **_credentials(self.settings),
                )
        except ImportError as exc:
            raise ConfigError("nkey", "needs nkeys: pip install 'box-bridge[nkeys]'") from exc
        except (nats.errors.Error, OSError, TimeoutError, ValueError) as exc:
            await client.close()
            # What the server said ("Authorization Violation") tells more than that it hung up.
            said = [item for item in complaints if not isinstance(item, OSError)]
            raise ConnectFailed(urls, _told((said or complaints or [exc])[0])) from exc
        client.options["max_reconnect_attempts"] = -1  # once it was there, wait for it for ever
        self._client = client
        for listener in self._listeners:
            listener.sid = await client.listen(listener.subject, listener.handler, listener.queue)
        await self._on_up()

    async def _keep(self) -> None:
        """Replace a client that was closed for good, or that only looks alive."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WATCH_INTERVAL):
                    await self._lost.wait()
            if self._client.is_zombie:
                self.metrics.count("zombie")
                await self._client.close()
            if not self._client.is_closed:
                continue
            self.metrics.count("rebuild")
            reason = self._client.last_error or self._last_error
            _log.warning("NATS closed the connection (%s); making a new one", reason)
            async for attempt in stamina.retry_context(
                on=ConnectFailed, attempts=None, timeout=None, wait_max=5.0
            ):
                with attempt:
                    await self._connect(patience=10.0)

    async def _on_up(self) -> None:
        self._lost.clear()
        if not self._up.is_set():
            self._up.set()
            if self._back_since == float("inf"):
                self._back_since = time.monotonic()
            self.metrics.count("connected")
            self._tell(True)

    async def _on_lost(self) -> None:
        if self._up.is_set():
            self._up.clear()
            self._down_since = time.monotonic()
            for _, future in self._replies.values():
                _expire(future)  # an answer published meanwhile is lost: the outcome is unknown
            self._back_since = float("inf")  # set when it is
            if not self._closing:
                self.metrics.count("disconnected")
                _log.warning("cut off from NATS; reconnecting")
                self._tell(False)

    async def _on_closed(self) -> None:
        await self._on_lost()
        self._lost.set()

    async def _on_error(self, exc: Exception) -> None:
        self._last_error = _told(exc)
        self.metrics.count("error")
        denied = _DENIED.search(self._last_error)
        if denied is None:
            _log.debug("nats: %s", exc)
            return
        _log.warning("nats: %s", self._last_error)
        for subject, future in self._replies.values():
            if subject.lower() == denied[1] and not future.done():  # nats-py lowers the text
                future.set_exception(NotPermitted(subject))

    def _tell(self, up: bool) -> None:
        for watcher in list(self._watchers):
            watcher(up)

    async def _forget(self, listener: Listener) -> None:
        if listener in self._listeners:
            self._listeners.discard(listener)
            if not self._client.is_closed:
                await self._client.unlisten(listener.sid)

    async def _close(self) -> None:
        self._closing = True
        with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
            async with asyncio.timeout(2):
                await self._client.close()


class _Requests:
    """What nats-py's JetStream calls need of a client, with this module's promises."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.connected_server_version = connection._client.connected_server_version

    async def request(self, subject: str, payload: bytes = b"", timeout: float = 5) -> Message:
        try:
            return await self._connection.request(subject, payload, timeout=timeout)
        except NoResponders as exc:
            raise nats.errors.NoRespondersError from exc
        except NoReply as exc:
            raise nats.errors.TimeoutError from exc


def _told(exc: Exception) -> str:
    """What went wrong, in as few words as tell it."""
    if isinstance(exc, OSError) and exc.errno:
        return os.strerror(exc.errno).lower()
    return str(exc).removeprefix("nats: ") or type(exc).__name__


def _expire(future: asyncio.Future[Message]) -> None:
    if not future.done():
        future.set_exception(TimeoutError())


def _credentials(settings: NatsConfig) -> dict[str, Any]:
    """nats-py's names for how this connection authenticates; raises ConfigError."""
    given: dict[str, Any] = {
        "user": settings.user or None,
        "password": settings.password or None,
        "token": settings.token or None,
        "user_credentials": settings.creds or None,
        "nkeys_seed": settings.nkey or None,
        "tls_handshake_first": settings.tls_first,
    }
    if settings.ca or settings.cert or settings.tls_first:
        try:
            context = ssl.create_default_context(cafile=settings.ca or None)
            if settings.cert:
                context.load_cert_chain(settings.cert, settings.key or None)
        except OSError as exc:
            raise ConfigError("[nats] ca, cert, key", f"cannot be loaded: {exc}") from exc
        given["tls"] = context
    return {key: value for key, value in given.items() if value}
