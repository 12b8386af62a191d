"""Probes: what they answer, and that those of many instances fall together."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator

import pytest

from bridge.box.probes import BEATS, Prober, until_next
from bridge.settings import Probe

TCP = Probe(tcp=True, timeout=5)


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost", "0.0.0.0", "::1", "::"])
async def test_a_tcp_probe_passes_where_somebody_listens(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server(("", 0), family=family) as server:
        port = server.getsockname()[1]
        async with Prober.open(address) as prober:
            assert await prober.probe(TCP, port) is None
            assert len(prober.ports) == 1  # known until the next look at the load
            prober.forget_closed()
            assert not prober.ports


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost"])
async def test_a_tcp_probe_says_why_it_fails(address: str, unused_port: int) -> None:
    async with Prober.open(address) as prober:
        assert "ConnectionRefusedError" in (await prober.probe(TCP, unused_port) or "")


async def test_a_tcp_probe_gives_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf:  # nobody accepts
        port = deaf.getsockname()[1]
        async with Prober.open("127.0.0.1") as prober:
            waiting: list[socket.socket] = []
            answer = None
            while answer is None and len(waiting) < 10:
                client = socket.socket()
                client.setblocking(False)
                client.connect_ex(("127.0.0.1", port))
                waiting.append(client)
                answer = await prober.probe(Probe(tcp=True, timeout=0.1), port)
            for client in waiting:
                client.close()
    assert answer == "no answer within 0.1 s"


def test_probes_of_many_instances_fall_together() -> None:
    chance = random.Random(1)
    starts = [chance.uniform(1000, 1005) for _ in range(500)]
    moments = [start + until_next(start, 5.0) for start in starts]
    assert len({round(moment, 6) for moment in moments}) <= BEATS + 1
    assert all(5.0 <= moment - start <= 5.25 for start, moment in zip(starts, moments, strict=True))
    again = [moment + until_next(moment, 5.0) for moment in moments]
    assert len({round(moment, 6) for moment in again}) <= BEATS + 1


@contextlib.asynccontextmanager
async def answering(
    *parts: bytes, then_hang: bool = False
) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that answers each connection with these bytes, part by part: its port, and what it
    was asked.
    """
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)
            if then_hang:
                await reader.read()
        except OSError:
            pass  # the probe has heard enough
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], asked


HTTP = Probe(http="/", timeout=5)
END = b"\r\n\r\n"


@pytest.mark.parametrize(
    "parts",
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",),
        (b"HTTP/1.0 204 No Content", END),
        (b"HTTP/1.1 302 Found\r\nLocation: /login", END),
        (b"HT", b"TP/1.1 20", b"0\r", b"\n\r\n"),
        (b"HTTP/1.1 103 Early Hints\r\nLink: </a>", END + b"HTTP/1.1 200 OK", END),
        (b"HTTP/1.1 100 Continue" + END, b"HTTP/1.1 204 No Content", END),
    ],
)
async def test_an_http_probe_passes_below_400(parts: tuple[bytes, ...]) -> None:
    async with answering(*parts) as (port, asked), Prober.open("127.0.0.1") as prober:
        assert await prober.probe(HTTP, port) is None
        assert len(asked) == 1
        assert len(prober.ports) == 1


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ((b"HTTP/1.1 404 Not Found", END), "HTTP 404 on /"),
        ((b"HTTP/1.1 103 Early Hints" + END, b"HTTP/1.1 503 Busy", END), "HTTP 503 on /"),
        ((b"SSH-2.0-OpenSSH_9.2\r\n",), "ConnectionError: not an answer of HTTP: b'SSH-2.0-Open"),
        ((b"HTTP/1.1 2000 OK", END), "ConnectionError: not an answer of HTTP"),
        ((), "ConnectionError: it hung up without an answer"),
        ((b"HTTP/1.1 103 Hints\r\n",), "ConnectionError: it hung up without an answer"),
        ((b"x" * 100_000,), "ConnectionError: its answer does not end"),
    ],
)
async def test_an_http_probe_says_why_it_fails(parts: tuple[bytes, ...], why: str) -> None:
    async with answering(*parts) as (port, _), Prober.open("127.0.0.1") as prober:
        assert (await prober.probe(HTTP, port) or "").startswith(why)


async def test_an_http_probe_gives_up_in_time() -> None:
    async with (
        answering(b"HTTP/1.1 ", then_hang=True) as (port, _),
        Prober.open("127.0.0.1") as prober,
    ):
        answer = await prober.probe(Probe(http="/", timeout=0.1), port)
        assert answer == "no answer within 0.1 s"


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("/ready?full=1&x=%20", b"GET /ready?full=1&x=%20 HTTP/1.1"),
        ("/é b#top", b"GET /%C3%A9%20b HTTP/1.1"),
        ("/a\r\nEvil: 1", b"GET /a%0D%0AEvil:%201 HTTP/1.1"),
    ],
)
async def test_an_http_probe_asks_for_the_path_and_nothing_else(path: str, line: bytes) -> None:
    answer = b"HTTP/1.1 200 OK" + END
    async with answering(answer) as (port, asked), Prober.open("localhost") as prober:
        assert await prober.probe(Probe(http=path, timeout=5), port) is None
    first, host, *_ = asked[0].split(b"\r\n")
    assert (first, host) == (line, b"Host: localhost:%d" % port)
    assert b"Connection: close" in asked[0]
