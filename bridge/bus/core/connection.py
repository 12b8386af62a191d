"""One connection to NATS that survives outages of servers, clients and peers.

What it promises:

- A subscription made with `listen` lasts until it is closed. Each reconnect makes a new client and
  reads the files of credentials and certificates again.
- Nothing is sent while there is no connection: the caller gets CutOff at once. nats-py would buffer
  a request and send it after the reconnect, long after its caller gave up.
- A request that was sent ends in an answer, NoResponders, or NoReply (the outcome is unknown),
  within its timeout, and at once when the connection breaks.
- A dead peer is detected within 6 s (a ping every 2 s, two may be missing).
- Every error of nats-py and of the socket becomes a BusError.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime
from typing import Any, Final

import stamina
from nats.nuid import NUID

from bridge.bus.core.certificates import file_expiry, peer_expiry
from bridge.bus.core.connect import RECONNECT_MAX, Waiting, connect_client, connect_eventually
from bridge.bus.core.connect_errors import FOREIGN, describe, is_from_server
from bridge.bus.core.listener import Listener, Listeners
from bridge.bus.core.message import Handler, Message
from bridge.bus.core.nats_client import FrameRefused, FrameTooLarge, GuardedClient
from bridge.bus.core.pending_request import PendingRequest
from bridge.errors import (
    BusError,
    ConfigError,
    ConnectFailed,
    CutOff,
    InvalidMessage,
    NoReply,
    NotPermitted,
    TooLarge,
)
from bridge.log_limit import LimitedLog, cause_of
from bridge.observe import Metrics
from bridge.settings import NatsConfig
from bridge.tasks import raise_if_cancelled, task_scope

_log = logging.getLogger(__name__)

_ATTEMPT: Final = 10.0  # seconds of attempts with one client; then credentials are read again
_LAST_FLUSH: Final = 2.0  # seconds to send what is still queued when the connection is closed
_STEADY: Final = 1.0  # seconds that a connection must last to count as made
_WATCH_INTERVAL: Final = 1.0  # seconds between checks for a zombie client
_DENIED: Final = re.compile(
    r'permissions violation for (publish|subscription) to "(.+?)"', re.IGNORECASE
)

Watcher = Callable[[bool], None]
"""Called with True after each (re)connect, with False when the connection is lost. It must not
block.
"""


class Connection:
    """See the module. Use `Connection.open`."""

    def __init__(self, settings: NatsConfig, name: str, metrics: Metrics) -> None:
        self.settings = settings
        self.subjects = settings.subjects
        self.metrics = metrics
        self._name = name
        self._client = GuardedClient(metrics.count)
        self._client._status = GuardedClient.CLOSED  # until `_connect` puts a live one here
        self._listeners = Listeners()
        self._watchers: list[Watcher] = []
        self._requests: dict[str, PendingRequest] = {}
        self._tokens = itertools.count(1)
        self._inbox = f"{settings.inbox_prefix}.{NUID().next().decode()}."
        self._up = asyncio.Event()
        self._lost = asyncio.Event()
        self._end_reason = ""  # of the server, for the last end of the connection
        self._down_since = time.monotonic()
        self._back_since = float("-inf")
        self._closing = False
        self._log = LimitedLog(_log)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        settings: NatsConfig,
        *,
        name: str,
        metrics: Metrics | None = None,
        patience: float = 2.0,
        unreachable: float | None = None,
        waiting: Waiting | None = None,
        give_up: asyncio.Event | None = None,
    ) -> AsyncIterator[Connection]:
        """Connect, and reconnect until the block ends.

        `name` is shown by `nats server report connections`. Raises ConnectFailed if the first
        connection takes longer than `patience` seconds, or 1 s for each server, and ConfigError for
        an invalid setting. A bug in the reconnecting task cancels the block and is raised.

        After `unreachable` seconds it does not wait for servers at whose addresses no program
        listens. With `waiting` the first connection may take any time: it is called with the
        failure of the first attempt, and when the reason changes. ConnectFailed is raised then if a
        server refuses, or when `give_up` is set.
        """
        connection = cls(settings, name, metrics or Metrics())
        try:
            if waiting is None:
                await connection._connect(patience, unreachable)
            else:
                await connect_eventually(connection._connect, waiting, give_up or asyncio.Event())
            await connection.listen(f"{connection._inbox}*", connection._take_reply)
            async with task_scope() as tasks:
                tasks.create_task(connection._reconnect(), name="nats-reconnect")
                yield connection
        finally:
            await connection._close()

    # ── state ────────────────────────────────────────────────────────────────────────────

    @property
    def connected(self) -> bool:
        """Whether messages can be sent now."""
        return self._up.is_set()

    def cut_off_for(self) -> float:
        """Seconds since the connection was lost; 0 while there is one."""
        return 0.0 if self.connected else time.monotonic() - self._down_since

    def back_for(self) -> float:
        """Seconds since the reconnect after the last outage; infinite without an outage. Other
        clients may reconnect a little later.
        """
        return time.monotonic() - self._back_since

    async def wait_connected(self) -> None:
        """Return when there is a connection."""
        await self._up.wait()

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Call `watcher` on each connect and disconnect; call the result to stop that."""
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)

    @property
    def max_payload(self) -> int:
        """The server's limit for headers and payload of one message, in bytes."""
        return self._client.max_payload

    def certificate_expiries(self) -> dict[str, datetime]:
        """When the certificate of the ``server``, and of this ``client``, expires; empty without
        TLS.
        """
        found = {
            "server": peer_expiry(self._client.ssl_object),
            "client": file_expiry(self.settings.cert),
        }
        return {whose: expiry for whose, expiry in found.items() if expiry is not None}

    @property
    def server_info(self) -> Mapping[str, Any]:
        """The server's INFO of this connection."""
        return self._client._server_info

    @property
    def is_local(self) -> bool:
        """Whether the server's address is of this machine."""
        url = self._client.connected_url
        host = url.hostname if url else None
        return host in ("localhost", "::1") or str(host).startswith("127.")

    # ── sending and receiving ────────────────────────────────────────────────────────────

    async def listen(self, subject: str, handler: Handler, *, queue: str = "") -> Listener:
        """Give each message on `subject` to `handler` until the Listener is closed.

        While there is no connection the subscription begins with the next one. Raises BusError for
        a subject that cannot be sent.
        """
        return self._listeners.add(self._client, Listener(subject, queue, handler, self._unlisten))

    def publish(
        self,
        subject: str,
        data: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        reply: str = "",
    ) -> None:
        """Send at most once, without an answer. Raises CutOff, TooLarge, InvalidMessage, and
        BusError for a message that cannot be sent now (a server that reads too slowly).
        """
        if not self._up.is_set():
            raise CutOff(self.cut_off_for(), self._end_reason)
        try:
            self._client.publish_now(subject, data, reply, headers)
        except FrameTooLarge as exc:
            raise TooLarge(subject, str(exc)) from exc
        except (FrameRefused, UnicodeError) as exc:
            raise InvalidMessage(subject, describe(exc)) from exc
        except FOREIGN as exc:
            raise BusError(f"cannot send on {subject!r}: {describe(exc)}") from exc

    def reply(self, subject: str, prepared: bytes) -> None:
        """Send a reply that `prepare` has made, at most once. Raises the errors of `publish`."""
        if not self._up.is_set():
            raise CutOff(self.cut_off_for(), self._end_reason)
        try:
            self._client.reply_now(subject, prepared)
        except (FrameRefused, UnicodeError) as exc:
            raise InvalidMessage(subject, describe(exc)) from exc
        except FOREIGN as exc:
            raise BusError(f"cannot send on {subject!r}: {describe(exc)}") from exc

    def new_inbox(self) -> str:
        """A unique subject under this connection's inbox prefix."""
        return f"{self.settings.inbox_prefix}.{NUID().next().decode()}"

    async def request(
        self,
        subject: str,
        data: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 5.0,
    ) -> Message:
        """Send a request and return the first answer.

        Raises CutOff, NoResponders and NotPermitted (nothing was done), NoReply (the outcome is
        unknown).
        """
        request = self.ask(subject, data, headers=headers, timeout=timeout)
        try:
            return await request.answer()
        finally:
            request.drop()

    def ask(
        self,
        subject: str,
        data: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 5.0,
    ) -> PendingRequest:
        """Send a request now, to await its `answer` later: many can be open without a task for
        each. The caller must `drop` it. Raises CutOff and BusError, as `publish` does.
        """
        request = self.inquire(subject, data, headers=headers, timeout=timeout)
        try:
            request.send()
        except BusError:
            request.drop()
            raise
        return request

    def inquire(
        self,
        subject: str,
        data: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 5.0,
    ) -> PendingRequest:
        """A request that is not sent yet: each `send` sends a copy, until one is answered. The
        caller must `drop` it.
        """
        token = str(next(self._tokens))

        def publish() -> None:
            self.publish(subject, data, headers=headers, reply=self._inbox + token)

        return PendingRequest(self._requests, token, subject, publish, timeout)

    async def flush(self, timeout: float = 5.0) -> None:
        """Return when the server has read everything that was sent. Raises CutOff, NoReply."""
        if not self._up.is_set():
            raise CutOff(self.cut_off_for(), self._end_reason)
        try:
            await self._client.flush(timeout)
        except FOREIGN as exc:
            raise NoReply("PING", timeout, "" if self.connected else self._end_reason) from exc

    def _take_reply(self, message: Message) -> None:
        request = self._requests.get(message.subject.rpartition(".")[2])
        if request is not None:
            request.take(message)

    # ── staying connected ────────────────────────────────────────────────────────────────

    async def _connect(self, patience: float, unreachable: float | None = None) -> None:
        """Connect a new client: see `connect_client`."""
        self._client = client = await connect_client(
            self.settings,
            name=self._name,
            metrics=self.metrics,
            discovered=self._client.discovered,
            on_end=self._on_end,
            on_error=self._on_error,
            patience=patience,
            unreachable=unreachable,
        )
        self._listeners.move_to(client)
        self._on_up()

    async def _reconnect(self) -> None:
        """Make a new client whenever the connection is lost, or a zombie."""
        while True:
            await self._end_of_client()
            async for attempt in stamina.retry_context(
                on=(BusError, ConfigError), attempts=None, timeout=None, wait_max=RECONNECT_MAX
            ):
                with attempt:
                    await self._renew()

    async def _end_of_client(self) -> None:
        while not self._client.is_closed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WATCH_INTERVAL):
                    await self._lost.wait()
            self._listeners.retry_denied(self._client)
            if self._client.is_zombie:
                self.metrics.count("zombie")
                self._client.end(BusError("its read task has ended"))

    async def _renew(self) -> None:
        """Connect again. Raises also if the connection ends within a second: otherwise a server
        that hangs up on what this client sends would be retried without a pause.
        """
        await self._client.close()
        try:
            await self._connect(_ATTEMPT)
        except (ConnectFailed, ConfigError) as exc:
            raise_if_cancelled()
            self._log.report(cause_of(exc), "still cut off: %s", exc)
            raise
        raise_if_cancelled()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STEADY):
                await self._lost.wait()
        if self._client.is_closed:
            raise CutOff(self.cut_off_for(), self._end_reason)

    def _on_up(self) -> None:
        self._lost.clear()
        self._up.set()
        if self._back_since == float("inf"):
            self._back_since = time.monotonic()
        self.metrics.count("connected")
        for whose, expiry in self.certificate_expiries().items():
            self.metrics.certificate_expiry.labels(whose).set(expiry.timestamp())
        self._notify(up=True)

    def _on_end(self, client: GuardedClient) -> None:
        if client is not self._client or not self._up.is_set():
            return  # the client was still connecting, or is being replaced
        self._up.clear()
        self._lost.set()
        self._down_since = time.monotonic()
        self._back_since = float("inf")  # until the reconnect
        error = client.last_error
        self._end_reason = describe(error) if error and is_from_server(error) else ""
        for request in self._requests.values():
            # Its answer may be lost: the outcome is unknown.
            request.fail(TimeoutError(self._end_reason))
        if not self._closing:
            self.metrics.count("disconnected")
            reason = describe(error) if error else "no reason given"
            self._log.report("cut off", "cut off from NATS (%s); reconnecting", reason)
            self._notify(up=False)

    def _on_error(self, exc: Exception) -> None:
        text = describe(exc)
        self.metrics.count("error")
        denied = _DENIED.search(text)
        if denied is None:
            _log.debug("nats: %s", text)
            return
        self._log.report((denied[1].lower(), *denied[2].split(".")[:2]), "nats: %s", text)
        if denied[1].lower() == "publish":
            domain = f"$JS.{self.settings.domain}.API."  # a server names its own domain's API so
            for request in self._requests.values():
                subject = request.subject
                if denied[2] in (subject, subject.replace(domain, "$JS.API.", 1)):
                    request.fail(NotPermitted(subject))
        else:
            self._listeners.deny(denied[2])

    def _notify(self, *, up: bool) -> None:
        for watcher in list(self._watchers):
            watcher(up)

    def _unlisten(self, listener: Listener) -> None:
        self._listeners.remove(self._client, listener)

    async def _close(self) -> None:
        self._closing = True
        if self.connected:
            with contextlib.suppress(*FOREIGN):
                await self._client.flush(_LAST_FLUSH)  # the queued messages are to arrive
        self._client.end()
        await self._client.close()
