"""Requests in flight are counted without blocking the loop, and without the Box's own probes."""

from __future__ import annotations

import asyncio
import threading

import pytest

from bridge.box.runner.inflight import InflightCounter
from bridge.box.runner.probes import Prober
from bridge.box.runtimes.sockets import connections
from bridge.settings import Probe


async def test_counting_does_not_block_the_loop_and_ignores_probes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reading, probing = threading.Event(), threading.Event()

    def read_while_probed() -> list[tuple[int, int]]:
        reading.set()
        assert probing.wait(10), "the loop was blocked"
        return connections()

    monkeypatch.setattr("bridge.box.runner.inflight.connections", read_while_probed)
    connected, counted, closed = (asyncio.Barrier(3) for _ in range(3))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await connected.wait()
        await counted.wait()
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
        )  # otherwise aiohttp retries the probe
        writer.close()
        await writer.wait_closed()
        await closed.wait()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, Prober.open("127.0.0.1") as prober, asyncio.TaskGroup() as tasks:
        counting = tasks.create_task(InflightCounter(prober).counts())
        assert await asyncio.to_thread(reading.wait, 10)
        tasks.create_task(prober.probe(Probe(http="/", timeout=10), port))
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        await connected.wait()
        probing.set()
        assert (await counting)[port] == 1  # the client's; the probe's is not counted
        await counted.wait()
        writer.close()
        await writer.wait_closed()
        await closed.wait()
