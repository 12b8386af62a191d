"""The socket: passes bytes to the parser and writes frames, without a task in between.

nats-py reads through a StreamReader and writes through a task that waits for work: a request and
its reply take nine turns of the event loops at both ends. Here bytes are parsed in the turn in
which they arrive, and the first frame of a turn is written in that turn. That leaves three turns
and a third of the time (docs/explanation/performance-techniques.md). The other frames of a turn are
written in one piece at its end: Python 3.12 and newer would send many small pieces, at half the
rate.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import nats.errors
from nats.aio.transport import TcpTransport

_MAX_INFOS: Final = 1000  # INFOs that wait to be processed: no server sends that many


class Transport(asyncio.Protocol):
    """Takes over the socket of `transport`, for one connection.

    `parse` gets the bytes, `end` the reason when the socket fails or ends, and `drain` is called
    when the socket accepts frames again.
    """

    def __init__(
        self,
        transport: TcpTransport,
        parse: Callable[[bytes], Sequence[bytes]],
        end: Callable[[Exception], None],
        drain: Callable[[], None],
    ) -> None:
        writer, self._reader = transport._io_writer, transport._io_reader
        assert writer is not None
        assert self._reader is not None
        self._parse = parse
        self._end = end
        self._drain = drain
        self._infos: asyncio.Queue[bytes] = asyncio.Queue(_MAX_INFOS)
        self._socket: Any = writer.transport
        self._before: Any = self._socket.get_protocol()
        self.full = False

    def start(self) -> None:
        """Take over from the StreamReader, with the bytes that it has read already."""
        reader: Any = self._reader
        self._socket.set_protocol(self)
        if reader._buffer:
            self.data_received(bytes(reader._buffer))
            reader._buffer.clear()
        if reader._paused:  # its buffer was full
            self._socket.resume_reading()
        if reader.at_eof() or self._socket.is_closing():
            self._end(nats.errors.UnexpectedEOF())

    async def info(self) -> bytes:
        """The next INFO that the parser found."""
        return await self._infos.get()

    def write(self, frames: Sequence[bytes]) -> None:
        """Send `frames` in one piece. Not to be called while `full`."""
        try:
            self._socket.write(frames[0] if len(frames) == 1 else b"".join(frames))
        except (OSError, RuntimeError) as exc:  # uvloop raises where asyncio drops the bytes
            self._end(exc)

    # ── called by asyncio ───────────────────────────────────────────────────────────────────

    def data_received(self, data: bytes) -> None:
        try:
            for info in self._parse(data):
                self._infos.put_nowait(info)
        except (nats.errors.ProtocolError, asyncio.QueueFull):
            self._end(nats.errors.ProtocolError())

    def eof_received(self) -> bool:
        self._end(nats.errors.UnexpectedEOF())
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._before.connection_lost(exc)  # nats-py waits there for the end of the socket
        self._end(exc or nats.errors.UnexpectedEOF())

    def pause_writing(self) -> None:
        self.full = True
        self._before.pause_writing()

    def resume_writing(self) -> None:
        self.full = False
        self._before.resume_writing()
        self._drain()
