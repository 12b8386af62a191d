"""uvloop: the command line runs on it where it is installed, and the bus works on it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
import uvloop

from bridge import EventStream, Start
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.cli.event_loop import new_event_loop
from bridge.errors import CutOff
from tests.stored_events import tell, texts
from tests.support import connect, eventually


def test_the_command_line_runs_on_uvloop_where_it_is_installed() -> None:
    loop = new_event_loop()
    loop.close()
    assert isinstance(loop, uvloop.Loop)


def test_without_uvloop_it_runs_on_asyncio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    loop = new_event_loop()
    loop.close()
    assert isinstance(loop, asyncio.SelectorEventLoop)


def test_a_connection_on_uvloop_reads_writes_and_comes_back(tmp_path: Path) -> None:
    async def work() -> None:
        async with (
            EmbeddedServer(tmp_path) as server,
            connect(server.url) as connection,
        ):
            await topology.ensure(connection)
            seen: list[bytes] = []
            await connection.listen("big", lambda message: seen.append(message.data))
            sent = [b"%d" % number * 100_000 for number in range(40)]  # more than a socket holds
            for data in sent:
                connection.publish("big", data)
            await connection.flush()
            assert seen == sent
            await server.kill()
            await eventually(lambda: not connection.connected)
            with pytest.raises(CutOff):
                connection.publish("big", b"")
            await server.start()
            await connection.wait_connected()
            await tell(connection, "a", "b")
            async with EventStream.open(connection, start=Start.FIRST, follow=False) as events:
                assert texts([event async for event in events]) == ["a", "b"]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work())
