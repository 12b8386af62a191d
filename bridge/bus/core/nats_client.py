"""nats-py's client, guarded against the inputs that stop or silence it.

nats-py 2.16 ends its read loop on any unexpected exception and stays "connected" forever: one
message with a non-UTF-8 subject, a malformed header block or a late PONG is enough. JetStream
stores such messages, so they come again. `GuardedClient` therefore

- parses frames strictly (split on a space, as the server writes them) and decodes nothing
  that can fail (`parser`), as the socket delivers them (`transport`);
- passes each message to its handler in the read loop, without a queue, a task or a silent drop. A
  handler's exception is counted, and the next message is read. (Do not use nats-py's own
  `subscribe` and `request` on it: see `listen`, and `Connection.request`);
- ends with its connection, at once and for good, after any failure. nats-py would flush to the peer
  and wait for its goodbye, forever if the peer is frozen; its reconnecting ends with an unexpected
  exception, and never reads a renewed credential. `Connection` makes the next client;
- sends queued frames in order (nats-py's PING overtakes them), so that one `flush` is a barrier;
- refuses to send a message on which the server hangs up: payload plus headers over
  ``max_payload``, or a control line over the server's limit;
- refuses a server that does not require TLS if the URL is ``tls://`` or TLS is configured (nats-py
  would send the credentials in plaintext).

It relies on nats-py's internals, so that dependency is pinned to one minor version.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import nats.errors
from nats.aio.client import Client, Srv
from nats.aio.transport import TcpTransport

from bridge.bus.core.credentials import login_options
from bridge.bus.core.message import Handler
from bridge.bus.core.parser import FrameParser
from bridge.bus.core.transport import Transport
from bridge.log_limit import LimitedLog
from bridge.nats_url import ServerUrl, with_port

_log = logging.getLogger(__name__)

_MAX_CONTROL: Final = 3900  # bytes of a PUB line; the server's max_control_line is 4096
_MAX_PENDING: Final = 16 * 1024 * 1024  # queued bytes that a slow server has not read

_ERROR: Final = b"-ERR"
_GOODBYE: Final = 1.0  # seconds that a WebSocket may take to close

Count = Callable[[str], None]


class FrameRefused(nats.errors.Error):
    """A publish that would make the server close the connection. Nothing was sent."""


class FrameTooLarge(FrameRefused):
    """A FrameRefused for its size."""


class GuardedClient(Client):
    """A nats-py client for one connection; see the module.

    `count` counts failures by kind, `on_end` is called when the connection is lost. `known` are
    servers of the cluster to try beside those of the URLs. `logins` are the credentials of the
    URLs, by ``host:port``. Each server has `server_timeout` seconds to complete the connection.
    """

    def __init__(
        self,
        count: Count,
        on_end: Callable[[GuardedClient], None] = lambda client: None,
        known: Sequence[Srv] = (),
        logins: Mapping[str, ServerUrl] | None = None,
        server_timeout: float | None = None,
    ) -> None:
        super().__init__()
        self.count = count
        self.on_error: Callable[[Exception], None] = lambda exc: None
        self.handlers: dict[int, Handler] = {}
        self._log = LimitedLog(_log)
        self._on_end = on_end
        self._known = known
        self._logins = logins or {}
        self._server_timeout = server_timeout
        self._feed: Transport | None = None
        self._in_turn = False
        self._frames = FrameParser(self)
        self._ps = self._frames  # type: ignore[assignment]

    # ── sending ──────────────────────────────────────────────────────────────────────────

    def listen(self, subject: str, handler: Handler, queue: str = "") -> int:
        """Subscribe; `handler` gets each message in the read loop. Returns the subscription id."""
        self._sid += 1
        self.handlers[self._sid] = handler
        self._queue(f"SUB {subject} {queue} {self._sid}\r\n".encode())
        return self._sid

    def unlisten(self, sid: int) -> None:
        """End the subscription; messages on their way are dropped."""
        self.handlers.pop(sid, None)
        self._queue(b"UNSUB %d\r\n" % sid)

    async def flush(self, timeout: float = 5.0) -> None:
        """Return when the server has read everything that was queued.

        Raises nats' FlushTimeoutError, and ConnectionClosedError when the connection ends first.
        """
        if self.is_closed:
            raise nats.errors.ConnectionClosedError
        pong: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        await self._send_ping(pong)
        try:
            async with asyncio.timeout(timeout):
                await pong
        except TimeoutError as exc:
            raise nats.errors.FlushTimeoutError from exc

    def publish_now(
        self, subject: str, data: bytes, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        """Queue a message for sending, without a task or a wait.

        Raises FrameRefused for a message that the server would hang up on, and nats'
        OutboundBufferLimitError if 16 MiB are queued already.
        """
        block = _header_block(headers) if headers else b""
        size = len(block) + len(data)
        if size > self._max_payload:
            bound = f"the server's max_payload of {self._max_payload}"
            raise FrameTooLarge(f"{size} bytes exceed {bound}")
        if block:
            line = f"HPUB {subject} {reply} {len(block)} {size}\r\n".encode()
        else:
            line = f"PUB {subject} {reply} {size}\r\n".encode()
        if len(line) > _MAX_CONTROL:  # in bytes: a peer's reply subject may be any text
            raise FrameRefused(f"subjects of {len(subject) + len(reply)} letters are too long")
        if self._pending_data_size + size > _MAX_PENDING:
            raise nats.errors.OutboundBufferLimitError
        self._queue(b"".join((line, block, data, b"\r\n")))

    def reply_now(self, subject: str, prepared: bytes) -> None:
        """Queue a reply that `prepare` has made, at a quarter of the cost of `publish_now`, and
        with its errors.
        """
        frame = f"HPUB {subject}".encode() + prepared
        if len(frame) - len(prepared) > _MAX_CONTROL:
            raise FrameRefused(f"a subject of {len(subject)} letters is too long")
        if self._pending_data_size + len(frame) > _MAX_PENDING:
            raise nats.errors.OutboundBufferLimitError
        self._queue(frame)

    def _queue(self, frame: bytes) -> None:
        """Send `frame` after the queued ones: now if it is the first in this turn of the loop, else
        with the others at the end of this turn.
        """
        self._pending.append(frame)
        self._pending_data_size += len(frame)
        if self._feed is None:  # a WebSocket, or a connection that is not read from yet
            if self._flush_queue is not None and self._flush_queue.empty():
                self._flush_queue.put_nowait(self._flush_done())
        elif not self._in_turn:
            self._in_turn = True
            asyncio.get_running_loop().call_soon(self._end_turn)
            self._write()

    def _end_turn(self) -> None:
        self._in_turn = False
        self._write()

    def _write(self) -> None:
        """Write the queued frames to the socket, unless it is full."""
        if self._pending and self._feed is not None and not self._feed.full:
            frames, self._pending = self._pending, []
            self._pending_data_size = 0
            self._feed.write(frames)

    def _flush_done(self) -> Any:
        assert self._reading_task is not None  # there is a connection, so there is a loop
        return self._reading_task.get_loop().create_future()

    # ── receiving ────────────────────────────────────────────────────────────────────────

    def take_failure(self, subject: str) -> None:
        """Count and log the exception that the handler of a message on `subject` raised."""
        self.count("handler_error")
        self._log.report(
            tuple(subject.split(".")[:2]),
            "handling a message on %s failed",
            subject,
            level=logging.ERROR,
            exc_info=True,
        )

    async def _read_loop(self) -> None:
        if not isinstance(self._transport, TcpTransport):
            await super()._read_loop()
            return
        self._feed = Transport(self._transport, self._frames.feed, self.end, self._write)
        self._feed.start()
        try:
            while True:
                await self._frames.inform(await self._feed.info())
        except nats.errors.ProtocolError as exc:
            self.end(exc)

    async def take_info(self, info: bytes) -> None:
        """Take the server's INFO: about itself and its cluster."""
        await self._process_info(json.loads(info))

    def take_error(self, text: str) -> None:
        """Take the server's error. Only after a permissions violation the connection continues."""
        error = nats.errors.Error(f"nats: {text.strip(chr(39))}")
        if "permissions violation" in text.lower():
            self.on_error(error)
        else:
            self.end(error)

    @property
    def is_zombie(self) -> bool:
        """Whether the client counts as connected although its read or write task has ended."""
        tasks = (self._reading_task, self._flusher_task)
        return self._status == Client.CONNECTED and any(t is None or t.done() for t in tasks)

    # ── ending ───────────────────────────────────────────────────────────────────────────

    @property
    def discovered(self) -> list[Srv]:
        """The cluster's servers that the server reported, for the next client."""
        return [
            Srv(server.uri, discovered=True, tls_name=server.tls_name)
            for server in self._server_pool
            if server.discovered
        ]

    def end(self, reason: Exception | None = None) -> None:
        """Drop the connection for good and call `on_end`. Queued frames are not sent."""
        if not self.is_closed:
            self._status = Client.CLOSED
            self._err = reason
            self._hang_up()
            self._on_end(self)

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        self._status = status
        self._hang_up()
        transport, self._transport = self._transport, None
        if transport is not None and not isinstance(transport, TcpTransport):
            with contextlib.suppress(OSError):  # TimeoutError is one
                async with asyncio.timeout(_GOODBYE):
                    await transport.wait_closed()  # type: ignore[no-untyped-call]  # else its HTTP session stays open
        await asyncio.sleep(0)  # the loop closes an aborted socket in its next round

    def _hang_up(self) -> None:
        """Stop without waiting for the peer, which may be frozen."""
        for task in (self._reading_task, self._ping_interval_task, self._flusher_task):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        for pong in self._pongs:
            if pong and not pong.done():
                pong.set_exception(nats.errors.ConnectionClosedError())
        self._pongs.clear()
        self._pending.clear()
        self._pending_data_size = 0
        self._ps.reset()
        self._feed = None
        if isinstance(self._transport, TcpTransport):
            if self._transport._io_writer is not None:
                self._transport._io_writer.transport.abort()
        elif self._transport is not None:
            self._transport.close()  # type: ignore[no-untyped-call]

    @property
    def ssl_object(self) -> ssl.SSLObject | None:
        """The TLS session; None without TLS."""
        writer = getattr(self._transport, "_io_writer", None)
        return writer.transport.get_extra_info("ssl_object") if writer is not None else None

    # ── guards around nats-py's own steps ────────────────────────────────────────────────

    async def _process_op_err(self, e: Exception) -> None:
        self.end(e)

    async def _process_err(self, err_msg: str) -> None:
        self.take_error(err_msg)

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        self._pongs.append(future)  # type: ignore[arg-type]
        self._queue(b"PING\r\n")

    def take_ping(self) -> None:
        """Answer the server's PING."""
        self._queue(b"PONG\r\n")

    def take_pong(self) -> None:
        """The server has read everything up to one of our PINGs, which may have timed out."""
        if self._pongs and (future := self._pongs.pop(0)) and not future.done():
            future.set_result(True)
        self._pongs_received += 1
        self._pings_outstanding = 0

    async def _process_connect_init(self) -> None:
        """Bounded as a whole: a server that accepts and is silent leaves time for others."""
        async with asyncio.timeout(self._server_timeout):
            try:
                await super()._process_connect_init()
            except ConnectionError as exc:
                raise self._parting_error() or exc from exc

    def _parting_error(self) -> nats.errors.Error | None:
        """What the server said before it hung up on us, where nats-py has not read it."""
        reader = getattr(self._transport, "_io_reader", None)
        unread = bytes(getattr(reader, "_buffer", b""))  # its methods raise once the peer is gone
        _, found, rest = unread.partition(_ERROR)
        said = rest.partition(b"\r\n")[0].decode(errors="replace").strip(" '")
        return nats.errors.Error(f"nats: {said}") if found else None

    def _connect_command(self) -> bytes:
        """With the credentials of this server's URL; a server that was discovered gets those of the
        first URL that has any. nats-py sends them undecoded, and none to discovered servers.
        """
        if self._logins and self._current_server is not None:
            at = with_port(self._current_server.uri.netloc)
            self.options |= login_options(self._logins.get(at) or self._logins[""])
            self._auth_configured = True
        return super()._connect_command()

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if initial_connection and self._current_server is not None:
            scheme = self._current_server.uri.scheme
            wants_tls = scheme == "tls" or (scheme != "wss" and self.options.get("tls"))
            if wants_tls and not (info.get("tls_required") or self.options["tls_handshake_first"]):
                raise nats.errors.Error("TLS is configured, but the server does not require TLS")
        await super()._process_info(info, initial_connection)

    def _setup_server_pool(self, connect_url: list[str]) -> None:
        super()._setup_server_pool(connect_url)
        self._server_pool.extend(self._known)


def prepare(data: bytes, headers: Mapping[str, str]) -> bytes:
    """A reply without its subject, for `GuardedClient.reply_now`."""
    block = _header_block(headers)
    return b" %d %d\r\n%b%b\r\n" % (len(block), len(block) + len(data), block, data)


def _header_block(headers: Mapping[str, str]) -> bytes:
    lines = ["NATS/1.0"]
    for name, value in headers.items():
        if "\r" in value or "\n" in value or ":" in name:
            raise FrameRefused(f"header {name!r} holds a line break or a colon")
        lines.append(f"{name}: {value}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
