"""A fault injector: a TCP proxy between a client and its server that can do what networks do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_CHUNK = 64 * 1024


class FaultyProxy:
    """Forwards bytes until a fault is set. Each fault lasts until `mend`.

    `held` counts the chunks that a fault kept back, be it for good or for a while, and `refused`
    the connections that it turned away: whether a fault was met.
    """

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self._to_server = _Gate()
        self._to_client = _Gate()
        self._refusing = False
        self._injection = b""
        self._pipes: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.refused = 0

    @classmethod
    @asynccontextmanager
    async def to(cls, url: str) -> AsyncIterator[FaultyProxy]:
        """A proxy in front of the server at `url`, for as long as the block lasts."""
        host, _, port = url.removeprefix("nats://").rpartition(":")
        proxy = cls(host, int(port))
        proxy._server = await asyncio.start_server(proxy._take, "127.0.0.1", 0)
        try:
            yield proxy
        finally:
            proxy._server.close()
            await asyncio.gather(*proxy._drop_all(), return_exceptions=True)
            await proxy._server.wait_closed()

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    @property
    def held(self) -> int:
        return self._to_server.held + self._to_client.held

    # ── faults ───────────────────────────────────────────────────────────────────────────

    def half_open(self) -> None:
        """Connections stay open and new ones are taken, but nothing is forwarded."""
        self._to_server.close()
        self._to_client.close()

    def cut_to_server(self) -> None:
        """What the client sends does not arrive; what the server sends does."""
        self._to_server.close()

    def cut_to_client(self) -> None:
        """What the server sends does not arrive; what the client sends does."""
        self._to_client.close()

    def delay(self, seconds: float = 0.3) -> None:
        """Everything takes so much longer, each way."""
        self._to_server.delay = self._to_client.delay = seconds

    def cut(self) -> None:
        """Connections break, and no new ones are taken."""
        self._refusing = True
        self._drop_all()

    def inject(self, line: bytes) -> None:
        """Send the client `line` as if the server had, after what it says next."""
        self._injection = line

    @property
    def injected(self) -> bool:
        """Whether that has happened."""
        return not self._injection

    def mend(self) -> None:
        """End every fault."""
        self._refusing = False
        for gate in (self._to_server, self._to_client):
            gate.open()

    # ── inside ───────────────────────────────────────────────────────────────────────────

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._refusing:
            self.refused += 1
            writer.transport.abort()
            return
        self._pipes.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self._pipe(reader, writer)
        finally:
            self._pipes.discard(task)
            writer.transport.abort()

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward both ways until one side ends."""
        server_reader, server_writer = await asyncio.open_connection(*self._upstream)
        ways = [
            asyncio.create_task(self._forward(reader, server_writer, self._to_server)),
            asyncio.create_task(self._forward(server_reader, writer, self._to_client)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            server_writer.transport.abort()

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: _Gate
    ) -> None:
        while chunk := await reader.read(_CHUNK):
            await gate.pass_through()
            if self._injection and gate is self._to_client and chunk.endswith(b"\r\n"):
                chunk, self._injection = chunk + self._injection, b""
            writer.write(chunk)
            await writer.drain()

    def _drop_all(self) -> list[asyncio.Task[None]]:
        pipes = list(self._pipes)
        for pipe in pipes:
            pipe.cancel()
        return pipes


class _Gate:
    """One direction: open, shut, or slow."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self.delay = 0.0
        self.held = 0

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self.delay = 0.0
        self._open.set()

    async def pass_through(self) -> None:
        """Return when a chunk may go on."""
        if self.delay:
            self.held += 1
            await asyncio.sleep(self.delay)  # this is the fault itself
        elif not self._open.is_set():
            self.held += 1
        await self._open.wait()
