"""One connection to NATS that outlives its servers, its client and its peers.

What it promises:

- A subscription made with `listen` lasts until it is closed. Each connection is a new client, with
  the credentials and certificates that are in their files by then.
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
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

import nats.errors
import stamina
from nats.aio.client import ServerVersion
from nats.nuid import NUID

from bridge.bus.core.connect_errors import is_refusal, told
from bridge.bus.core.credentials import credentials
from bridge.bus.core.message import Handler, Message
from bridge.bus.core.nats_client import FrameRefused, FrameTooLarge, GuardedClient
from bridge.bus.core.pending_request import PendingRequest, RepeatedRequest
from bridge.errors import (
    BusError,
    ConfigError,
    ConnectFailed,
    CutOff,
    NoReply,
    NotPermitted,
    TooLarge,
)
from bridge.observe import Metrics
from bridge.settings import NatsConfig
from bridge.tasks import raise_if_cancelled, task_scope

_log = logging.getLogger(__name__)

_PING_INTERVAL: Final = 2  # seconds; with two outstanding, a dead peer is noticed within 6 s
_RECONNECT_WAIT: Final = 0.25  # seconds between attempts at one server
_ATTEMPT: Final = 10.0  # seconds of them with one client; then credentials are read anew
_LAST_FLUSH: Final = 2.0  # seconds for what is still queued when the connection is closed
_STEADY: Final = 1.0  # seconds after which a connection was worth making
_RECONNECT_MAX: Final = 2.0  # seconds, at most, between clients when none proves worth it
_WATCH_INTERVAL: Final = 1.0  # seconds between looks for a zombie client
_DENIED: Final = re.compile(
    r'permissions violation for (publish|subscription) to "(.+?)"', re.IGNORECASE
)

Watcher = Callable[[bool], None]
"""Told True after each (re)connect, False when the connection is lost. Must not block."""


class Listener:
    """A subscription; `await close()` ends it. `denied` says that the server refused it."""

    __slots__ = ("_connection", "denied", "handler", "queue", "sid", "subject")

    def __init__(self, connection: Connection, subject: str, queue: str, handler: Handler) -> None:
        self._connection = connection
        self.subject = subject
        self.queue = queue
        self.handler = handler
        self.sid = 0
        self.denied = False

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
        self._replies: dict[str, PendingRequest | RepeatedRequest] = {}
        self._tokens = itertools.count(1)
        self._inbox = f"{settings.inbox_prefix}.{NUID().next().decode()}."
        self._up = asyncio.Event()
        self._lost = asyncio.Event()
        self._down_since = time.monotonic()
        self._back_since = float("-inf")
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
            listener.sid = self._client.listen(subject, handler, queue)
        return listener

    def publish(
        self,
        subject: str,
        data: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        reply: str = "",
    ) -> None:
        """Send at most once, without an answer. Raises CutOff, TooLarge, or BusError for what else
        cannot be sent at all (the server takes nothing any more).
        """
        if not self._up.is_set():
            raise CutOff(self.cut_off_for())
        try:
            self._client.publish_now(subject, data, reply, headers)
        except FrameTooLarge as exc:
            raise TooLarge(subject, str(exc)) from exc
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
        return await self.ask(subject, data, headers=headers, timeout=timeout).answer()

    def ask(
        self,
        subject: str,
        data: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 5.0,
    ) -> PendingRequest:
        """Send a request now and await its `answer` later: many can be under way without a task
        for each. Each must be awaited, or dropped. Raises CutOff and BusError, as `publish` does.
        """
        token = str(next(self._tokens))
        self.publish(subject, data, headers=headers, reply=self._inbox + token)
        return PendingRequest(self._replies, token, subject, timeout)

    def inquire(
        self, subject: str, data: bytes = b"", *, headers: Mapping[str, str] | None = None
    ) -> RepeatedRequest:
        """A request to be sent again until it is answered: nothing is sent yet, and it must be
        dropped. Its `send` raises CutOff and BusError, as `publish` does.
        """
        token = str(next(self._tokens))

        def send() -> None:
            self.publish(subject, data, headers=headers, reply=self._inbox + token)

        return RepeatedRequest(self._replies, token, subject, send)

    async def flush(self, timeout: float = 5.0) -> None:
        """Return when the server has seen all that was sent. Raises CutOff, NoReply."""
        if not self._up.is_set():
            raise CutOff(self.cut_off_for())
        try:
            await self._client.flush(timeout)
        except nats.errors.Error as exc:
            raise NoReply("PING", timeout) from exc

    @property
    def server_version(self) -> ServerVersion:
        """The version of the server it is connected to."""
        return self._client.connected_server_version

    def _take_reply(self, message: Message) -> None:
        asked = self._replies.get(message.subject.rpartition(".")[2])
        if asked is not None:
            asked.take(message)

    # ── staying connected ────────────────────────────────────────────────────────────────

    async def _connect(self, patience: float) -> None:
        """Connect a new client; raises ConnectFailed after `patience` seconds, or when each server
        has refused, and ConfigError.
        """
        urls = self.settings.urls
        proofs = credentials(self.settings)
        complaints: list[Exception] = []
        client = GuardedClient(self.metrics.count, self._on_end, self._client.discovered)

        async def complain(exc: Exception) -> None:
            if client is self._client:
                self._on_error(exc)
                return
            complaints.append(exc)
            if sum(map(is_refusal, complaints)) > len(urls):
                raise exc

        try:
            async with asyncio.timeout(patience):
                await client.connect(
                    urls,
                    name=self._name,
                    error_cb=complain,
                    ping_interval=_PING_INTERVAL,
                    max_outstanding_pings=2,
                    reconnect_time_wait=_RECONNECT_WAIT,  # type: ignore[arg-type]
                    max_reconnect_attempts=-1,
                    inbox_prefix=self.settings.inbox_prefix,
                    **proofs,
                )
            client.on_error = self._on_error
            self._client = client
        except Exception as exc:  # nats-py lets through what a peer can provoke
            # What the server said ("Authorization Violation") tells more than that it hung up.
            reasons = [*filter(is_refusal, complaints), *complaints, exc]
            raise ConnectFailed(urls, told(reasons[0])) from exc
        finally:
            if client is not self._client:
                await client.close()
        for listener in self._listeners:
            listener.sid = client.listen(listener.subject, listener.handler, listener.queue)
        self._on_up()

    async def _keep(self) -> None:
        """Make a new client whenever the connection is gone, or only looks alive."""
        while True:
            await self._end_of_client()
            async for attempt in stamina.retry_context(
                on=(BusError, ConfigError), attempts=None, timeout=None, wait_max=_RECONNECT_MAX
            ):
                with attempt:
                    await self._renew()

    async def _end_of_client(self) -> None:
        while not self._client.is_closed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WATCH_INTERVAL):
                    await self._lost.wait()
            if self._client.is_zombie:
                self.metrics.count("zombie")
                self._client.end(BusError("nobody reads from it"))

    async def _renew(self) -> None:
        """Connect again; raises when that fails, be it a moment later: a server that hangs up on
        what it is sent would else be asked again without a pause.
        """
        await self._client.close()
        try:
            await self._connect(_ATTEMPT)
        except (ConnectFailed, ConfigError) as exc:
            raise_if_cancelled()
            _log.warning("still cut off: %s", exc)
            raise
        raise_if_cancelled()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STEADY):
                await self._lost.wait()
        if self._client.is_closed:
            raise CutOff(self.cut_off_for())

    def _on_up(self) -> None:
        self._lost.clear()
        self._up.set()
        if self._back_since == float("inf"):
            self._back_since = time.monotonic()
        self.metrics.count("connected")
        self._tell(True)

    def _on_end(self, client: GuardedClient) -> None:
        if client is not self._client or not self._up.is_set():
            return  # one that was still connecting, or is being replaced
        self._up.clear()
        self._lost.set()
        self._down_since = time.monotonic()
        self._back_since = float("inf")  # set when it is
        for asked in self._replies.values():
            asked.fail(
                TimeoutError()
            )  # an answer published meanwhile is lost: the outcome is unknown
        if not self._closing:
            self.metrics.count("disconnected")
            reason = told(client.last_error) if client.last_error else "no reason given"
            _log.warning("cut off from NATS (%s); reconnecting", reason)
            self._tell(False)

    def _on_error(self, exc: Exception) -> None:
        said = told(exc)
        self.metrics.count("error")
        denied = _DENIED.search(said)
        if denied is None:
            _log.debug("nats: %s", said)
            return
        _log.warning("nats: %s", said)
        if denied[1].lower() == "publish":
            domain = f"$JS.{self.settings.domain}.API."  # the domain's own server knows none
            for asked in self._replies.values():
                if denied[2] in (asked.subject, asked.subject.replace(domain, "$JS.API.", 1)):
                    asked.fail(NotPermitted(asked.subject))
        else:
            for listener in self._listeners:
                listener.denied |= listener.subject == denied[2]

    def _tell(self, up: bool) -> None:
        for watcher in list(self._watchers):
            watcher(up)

    async def _forget(self, listener: Listener) -> None:
        if listener in self._listeners:
            self._listeners.discard(listener)
            if not self._client.is_closed:
                self._client.unlisten(listener.sid)

    async def _close(self) -> None:
        self._closing = True
        if self.connected:
            with contextlib.suppress(nats.errors.Error):
                await self._client.flush(_LAST_FLUSH)  # what was queued is to arrive
        self._client.end()
        await self._client.close()
