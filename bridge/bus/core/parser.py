"""A strict parser of what a NATS server sends; it never waits.

It replaces nats-py's regular expressions. It takes bytes as the socket delivers them, and passes
whole messages to the client at once; it returns only the rare INFOs, which the caller awaits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import nats.errors

from bridge.bus.core.message import Handler, Message

_log = logging.getLogger(__name__)

_MAX_LINE: Final = 1024 * 1024  # an INFO line lists every server of a cluster
_MESSAGES: Final = (b"MSG ", b"HMSG")

Frame = tuple[int, str, str, int, int]
"""Subscription, subject, reply, bytes of headers, bytes of headers and payload."""


class FrameHandler(Protocol):
    """The client that gets the frames."""

    handlers: dict[int, Handler]
    count: Callable[[str], None]

    def take_failure(self, subject: str) -> None: ...

    def take_ping(self) -> None: ...

    def take_pong(self) -> None: ...

    def take_error(self, text: str) -> None: ...

    async def take_info(self, info: bytes) -> None: ...


class FrameParser:
    """Parses the bytes of one connection after another; see the module."""

    def __init__(self, client: FrameHandler) -> None:
        self._client = client
        self.reset()

    def reset(self) -> None:
        """Drop a partial frame: the next bytes are those of a new connection."""
        self._rest = b""
        self._frame: Frame | None = None
        self._epoch = object()

    async def parse(self, data: bytes = b"") -> None:
        """Feed `data`, and have the client take its INFOs: for nats-py's own read loop."""
        for info in self.feed(data):
            await self.inform(info)

    async def inform(self, info: bytes) -> None:
        """Have the client take an INFO. Raises nats' ProtocolError if it is invalid."""
        try:
            await self._client.take_info(info)
        except Exception as exc:  # nats-py trusts what the server sends
            raise self._unreadable() from exc

    def feed(self, data: bytes) -> Sequence[bytes]:
        """Parse `data`; returns the INFOs in it, for `inform`.

        Raises nats' ProtocolError (a reconnect) for anything unexpected.
        """
        epoch, infos = self._epoch, list[bytes]()
        try:
            rest = self._consume(self._rest + data if self._rest else data, infos)
        except nats.errors.ProtocolError:
            raise
        except Exception as exc:  # the peer may send any bytes
            raise self._unreadable() from exc
        if epoch is self._epoch:
            self._rest = rest
        return infos

    def _unreadable(self) -> nats.errors.ProtocolError:
        self._client.count("read_error")
        _log.exception("reading from NATS failed; reconnecting")
        return nats.errors.ProtocolError()

    def _consume(self, data: bytes, infos: list[bytes]) -> bytes:
        """Parse all whole frames in `data`; returns the rest of it.

        Each message is passed on as soon as it is parsed; only a partial frame is remembered.
        """
        client, epoch, pos, end_of_data = self._client, self._epoch, 0, len(data)
        handlers, frame = client.handlers, self._frame
        while epoch is self._epoch:
            if frame is None:
                end = data.find(b"\r\n", pos)
                if end < 0:
                    if end_of_data - pos > _MAX_LINE:
                        raise nats.errors.ProtocolError
                    return data[pos:]
                line, pos = data[pos:end], end + 2
                if not line.startswith(_MESSAGES):
                    self._control(line, infos)
                    continue
                frame = _parse_frame(line)
            sid, subject, reply, header_size, size = frame
            body, end = pos + header_size, pos + size
            if end_of_data < end + 2:
                self._frame = frame
                return data[pos:]
            self._frame = frame = None
            handler = handlers.get(sid)
            if handler is not None:  # else the subscription ended while the message was on its way
                try:
                    handler(Message(subject, reply, data[body:end], data[pos:body]))
                except Exception:  # count it, and read the next message
                    client.take_failure(subject)
            pos = end + 2
        return b""

    def _control(self, line: bytes, infos: list[bytes]) -> None:
        op = line[:4].upper()
        if op == b"PING":
            self._client.take_ping()
        elif op == b"PONG":
            self._client.take_pong()
        elif op == b"-ERR":
            self._client.take_error(line[4:].strip().decode(errors="replace"))
        elif op == b"INFO":
            infos.append(line[4:])
        elif op[:3] != b"+OK":
            raise nats.errors.ProtocolError


def _parse_frame(line: bytes) -> Frame:
    """``[H]MSG subject sid [reply] [header-size] size`` → sid, subject, reply, sizes."""
    try:
        parts = line.decode().split(" ")
    except UnicodeDecodeError:
        parts = line.decode(errors="backslashreplace").split(" ")
    headed = parts[0] == "HMSG"
    with_reply = 6 if headed else 5
    if len(parts) not in (with_reply - 1, with_reply):
        raise nats.errors.ProtocolError
    reply = parts[3] if len(parts) == with_reply else ""
    header_size, size = int(parts[-2]) if headed else 0, int(parts[-1])
    if not 0 <= header_size <= size:
        raise nats.errors.ProtocolError
    return int(parts[2]), parts[1], reply, header_size, size
