"""A relay through kills: of NATS, of its receiver, of itself. Nothing is lost or out of order."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import ssl
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from tests.e2e.program import running
from tests.integration.test_relay import letters, relaying, unacknowledged
from tests.receiver import TAKEN, Answer, Receiver, Request, receiving, tell
from tests.support import connect, eventually

INSTANCES = [f"web-{number}" for number in range(5)]


async def told(connection: Connection, numbers: Sequence[int]) -> None:
    """So many events of each instance, which take turns."""
    for number in numbers:
        for instance in INSTANCES:
            await tell(connection, instance, number)


async def all_taken(receiver: Receiver, count: int) -> None:
    """Return when every event was taken, for the first time in order."""
    expected = list(range(1, count + 1))
    await eventually(
        lambda: all(len(receiver.first_taken(name)) == count for name in INSTANCES),
        what=f"{count} events of each are taken; so far {len(receiver.taken)}",
    )
    assert all(receiver.first_taken(name) == expected for name in INSTANCES)


async def test_a_kill_of_nats_loses_nothing_and_keeps_the_order(server: EmbeddedServer) -> None:
    async with connect(server.url) as teller, connect(server.url) as connection:
        await topology.ensure(teller)
        killed = asyncio.Event()

        async def script(request: Request) -> Answer:
            if len(receiver.taken) > 20:
                await killed.wait()
            return TAKEN

        async with receiving(script) as receiver, relaying(connection, receiver) as relay:
            await told(teller, range(1, 21))
            await eventually(lambda: len(receiver.taken) > 10)
            await server.kill()
            assert len(set(receiver.taken)) < 100
            killed.set()
            assert not relay.reports_of("stopped")
            await server.start()
            await eventually(lambda: teller.connected)
            await told(teller, range(21, 31))
            await all_taken(receiver, 30)
            await eventually(lambda: unacknowledged_is(teller, 0))


async def unacknowledged_is(connection: Connection, count: int) -> bool:
    return await unacknowledged(connection) == count


async def test_a_dead_letter_survives_a_kill_of_nats(server: EmbeddedServer) -> None:
    async with connect(server.url) as teller, connect(server.url) as connection:
        await topology.ensure(teller)
        asked, go = asyncio.Event(), asyncio.Event()

        async def script(request: Request) -> Answer:
            asked.set()
            await go.wait()
            return 400

        async with receiving(script) as receiver, relaying(connection, receiver) as relay:
            await tell(teller, "web-1", 1)
            await asked.wait()
            await server.kill()
            go.set()
            await eventually(lambda: not connection.connected)
            assert not relay.reports_of("dead_letter")
            await server.start()
            await eventually(lambda: relay.reports_of("dead_letter"))
            await teller.wait_connected()
            assert len(await letters(teller)) == 1


@pytest.mark.slow
async def test_the_next_relay_continues_where_a_killed_one_stopped(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    """Thrice: each time events are under way, and some that it held had not been sent."""

    async def script(request: Request) -> Answer:
        await asyncio.sleep(0.02)
        if request.id == "web-3.7":
            return 422
        return TAKEN if request.number > 1 or request.id[-1] not in "28" else 503

    async with connect(server.url) as teller, receiving(script) as receiver:
        await topology.ensure(teller)
        arguments = ("relay", "--to", receiver.url, "-s", server.url, "--since", "all", "--json")
        count = 0
        for _ in range(3):
            async with running(*arguments, cwd=tmp_path) as relay:
                await relay.wait_for('"started"')
                before = len(receiver.taken)
                count += 10
                await told(teller, range(count - 9, count + 1))
                await eventually(lambda: len(receiver.taken) > before + 5)  # noqa: B023
                relay.process.kill()
            assert len(set(receiver.taken)) < 5 * count - 1
        async with running(*arguments, cwd=tmp_path) as relay:
            await relay.wait_for('"started"')
            expected = {f"{name}.{n}" for name in INSTANCES for n in range(1, count + 1)}
            await eventually(
                lambda: set(receiver.taken) == expected - {"web-3.7"},
                what=f"all are taken; missing {sorted(expected - set(receiver.taken))}",
            )
            relay.process.send_signal(signal.SIGTERM)
            assert await relay.wait() == 0
        for name in INSTANCES:
            left_out = {7} if name == "web-3" else set()
            taken = receiver.first_taken(name)
            assert taken == [n for n in range(1, count + 1) if n not in left_out]
        summary = json.loads(relay.out[-1])
        assert summary["what"] == "stopped"
        assert await unacknowledged(teller) == 0
        [letter] = await letters(teller)
        assert letter.headers is not None
        assert letter.headers["Box-Dead-Id"] == "web-3.7"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
async def test_a_certificate_that_cannot_be_verified_gets_nothing(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
            *("-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "cert.pem"),
        ],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    async with connect(server.url) as connection, receiving(tls=context) as receiver:
        await topology.ensure(connection)
        assert receiver.url.startswith("https://")
        async with relaying(connection, receiver) as relay:
            await tell(connection, "web-1", 1)
            [outage] = await eventually(lambda: relay.reports_of("outage"))
            assert "certificate" in outage.lower()
        assert receiver.requests == []
