"""A socket's bytes to their parser, and frames to the socket, without a task between.

nats-py reads through a StreamReader and writes through a task that waits for work: a request and
its reply take nine turns of the event loops at both ends. Here what the socket gives is parsed in
the turn in which it comes, and the first frame of a turn is written in that turn: three are left,
and a third of the time (docs/performance.md). What else is written in the same turn follows in one
piece at its end: Python 3.12 and newer would send many small ones, at half the rate.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import nats.errors
from nats.aio.transport import TcpTransport

_MAX_INFOS: Final = 1000  # that nobody has looked at: no server sends so many


class Transport(asyncio.Protocol):
    """Takes over the socket of `transport`. `parse` gets the bytes, `end` why there are no more,
    and `drain` is called when the socket takes frames again. Belongs to one connection.
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
        """Take over from the StreamReader, with what it has read already."""
        reader: Any = self._reader
        self._socket.set_protocol(self)
        if reader._buffer:
            self.data_received(bytes(reader._buffer))
            reader._buffer.clear()
        if reader._paused:  # it had as much as it takes
            self._socket.resume_reading()
        if reader.at_eof() or self._socket.is_closing():
            self._end(nats.errors.UnexpectedEOF())

    async def info(self) -> bytes:
        """The next INFO that the parser found."""
        return await self._infos.get()

    def write(self, frames: Sequence[bytes]) -> None:
        """Send `frames`, in one piece. Not to be called while `full`."""
        self._socket.write(frames[0] if len(frames) == 1 else b"".join(frames))

    # ── asyncio's side ───────────────────────────────────────────────────────────────────

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
        self._before.connection_lost(exc)  # whoever waits for the socket's end waits there
        self._end(exc or nats.errors.UnexpectedEOF())

    def pause_writing(self) -> None:
        self.full = True
        self._before.pause_writing()

    def resume_writing(self) -> None:
        self.full = False
        self._before.resume_writing()
        self._drain()
