"""Rows against peers that are installed apart from this package: see tests/bench/peers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator, Sequence
from typing import Final
from urllib.parse import urlsplit

from bridge.bench.messages import consuming, read_all
from bridge.bench.row import Row, Sides, Site, at_least
from bridge.errors import BenchFailed
from tests.paths import REPOSITORY, TESTS

_PEERS: Final = TESTS / "bench" / "peers"
_SLOWER: Final = 5  # times: it reads as many fewer events, in about the same time
_PYTHON: Final = REPOSITORY / ".bench-venv" / "bin" / "python"


class Peer:
    """A program that does the work of a round for each line that it is sent, and says how long it
    took.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, command: Sequence[object], **told: object) -> AsyncIterator[Peer]:
        """The program, told what it must know, until the block ends."""
        process = await asyncio.create_subprocess_exec(
            *map(str, command),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=2**20,
        )
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(told).encode() + b"\n")
            yield cls(process)
        finally:
            process.stdin.close()
            await process.wait()

    async def seconds(self) -> float:
        """Have it do its work once more."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        answer = await self._process.stdout.readline()
        if not answer:
            raise BenchFailed("a peer ended by itself: see what it wrote")
        return float(answer)


@contextlib.asynccontextmanager
async def _beside_faststream(site: Site) -> AsyncIterator[Sides]:
    if not _PYTHON.exists():
        raise BenchFailed("FastStream is not installed: `make bench` sets up .bench-venv")
    async with consuming(site) as (connection, count):
        program = _PEERS / "faststream_consume.py"
        stream, fewer = connection.subjects.events_stream, max(count // _SLOWER, 1)
        async with Peer.running(
            [_PYTHON, program], url=site.url, stream=stream, count=fewer
        ) as peer:

            async def floor() -> float:
                return fewer / await peer.seconds()

            yield Sides(ours=lambda: read_all(connection, count), floor=floor)


@contextlib.asynccontextmanager
async def _beside_c(site: Site) -> AsyncIterator[Sides]:
    """The floor that no Python reaches: how far it is away is good to know."""
    program = site.directory / "consume"
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise BenchFailed("there is no C compiler here")
    compiling = await asyncio.create_subprocess_exec(
        *(compiler, "-O2", "-o", str(program), str(_PEERS / "consume.c"))
    )
    if await compiling.wait():
        raise BenchFailed("the peer in C does not compile")
    address = urlsplit(site.url)
    async with consuming(site) as (connection, count):
        stream = connection.subjects.events_stream
        command = [program, address.hostname, address.port, stream, count]
        async with Peer.running(command) as peer:

            async def floor() -> float:
                return count / await peer.seconds()

            yield Sides(ours=lambda: read_all(connection, count), floor=floor)


ROWS: Final = (
    Row(
        name="consume-c",
        what="stored events through the async iterator, checked and decoded",
        against="C, counting frames",
        unit="events/s",
        goal=None,
        prepare=_beside_c,
    ),
    Row(
        name="consume-faststream",
        what="stored events through the async iterator, checked and decoded",
        against="FastStream's subscriber, decoding",
        unit="events/s",
        goal=at_least(10.0),
        prepare=_beside_faststream,
    ),
)
