"""HTTP responses as foreign programs send them: the status counts, whatever comes with it."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bridge.box.runner.probes import Prober
from bridge.gateway.relay.webhook import Outcome, Webhook, WebhookResponse
from bridge.settings import Probe

PROBE = Probe(http="/healthz", timeout=5)
OK = b"HTTP/1.1 200 OK\r\n"
EMPTY = b"Content-Length: 0\r\n\r\n"
LONG = b"a" * 100_000


class Peer:
    """A server that answers each request with the same bytes, and then hangs up or waits."""

    def __init__(self, response: bytes, *, close: bool) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self.port = 0
        self._response = response
        self._close = close

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await _head(reader):
                self.requests.append(head)
                writer.write(self._response)
                if self._close:
                    break
        finally:
            writer.close()


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")),
            0,
        )
        return head + await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
        return b""  # the other side is gone, or the test is over


@asynccontextmanager
async def peer(
    response: bytes, *, close: bool = True, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Peer]:
    made = Peer(response, close=close)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, ssl=tls)
    made.port = server.sockets[0].getsockname()[1]
    async with server:
        yield made


async def post(
    port: int, *, timeout: float = 5, path: str = "/e", times: int = 1
) -> list[WebhookResponse]:
    url = f"http://127.0.0.1:{port}{path}"
    async with Webhook.open(url, headers={}, timeout=timeout) as webhook:
        return [await webhook.post(b"{}", {"ce-id": "web-1.1"}) for _ in range(times)]


GOOD = {
    "a header of 100 kB": OK + b"Content-Security-Policy: " + LONG + b"\r\n" + EMPTY,
    "a thousand headers": OK + b"".join(b"X-%d: y\r\n" % n for n in range(1000)) + EMPTY,
    "headers beyond any bound": OK + b"X: " + LONG * 12 + b"\r\n" + EMPTY,
    "a long reason phrase": b"HTTP/1.1 200 " + LONG + b"\r\n" + EMPTY,
    "no reason phrase": b"HTTP/1.1 200\r\n" + EMPTY,
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\n\r\nhello",
    "line feeds alone": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "headers that are none": OK
    + b"no colon here\r\n: no name\r\nX Y: z\r\n\xff\xfe: \x01\r\n"
    + EMPTY,
    "two lengths": OK + b"Content-Length: 5\r\nContent-Length: 7\r\n\r\nhello",
    "a length that is none": OK + b"Content-Length: many\r\n\r\nhello",
    "a negative length": OK + b"Content-Length: -1\r\n\r\nhello",
    "a length beyond any number": OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\nhello",
    "chunks that are none": OK + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\nhello\r\n0\r\n\r\n",
    "a chunk cut short": OK + b"Transfer-Encoding: chunked\r\n\r\nff\r\nhello",
    "a trailer": OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n",
    "an unknown transfer encoding": OK + b"Transfer-Encoding: gzip\r\n\r\nhello",
    "a body that is not gzip": OK + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello",
    "a broken cookie": OK + b"Set-Cookie: \x01=;;;=;\xff\r\nSet-Cookie: a b c\r\n" + EMPTY,
    "early hints": b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 3 + OK + EMPTY,
    "a continue": b"HTTP/1.1 100 Continue\r\n\r\n" + OK + EMPTY,
    "headers that end early": OK + b"X: y",
    "an absurd retry": OK + b"Retry-After: Mon, 20 Nov 9999999999 12:00:00 GMT\r\n" + EMPTY,
    "a line break first": b"\r\n" + OK + EMPTY,
}
BAD = {
    "HTTP/0.9": (b"<html>hello</html>\n", "not HTTP/1.x: '<html>hello</html>\\n'"),
    "another protocol": (b"SSH-2.0-OpenSSH_9.2\r\n", "not HTTP/1.x: 'SSH-2.0"),
    "a TLS alert": (b"\x15\x03\x01\x00\x02\x02\x46", "the response is TLS: use https"),
    "a status that is none": (b"HTTP/1.1 OK\r\n\r\n", "not HTTP/1.x"),
    "HTTP/2": (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", "not HTTP/1.x"),
    "nothing": (b"", "closed without a response"),
    "half a status line": (b"HTTP/1.1 2", "not HTTP/1.x"),
    "interim responses alone": (b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, "no final one"),
    "a redirect to itself": (
        b"HTTP/1.1 302 Found\r\nLocation: /e\r\n" + EMPTY,
        "redirects are not followed",
    ),
    "an absurd time": (
        b"HTTP/1.1 503 Busy\r\nRetry-After: Mon, 20 Nov 9999999999 12:00:00 GMT\r\n" + EMPTY,
        "HTTP 503",
    ),
}


@pytest.mark.parametrize("name", GOOD)
async def test_a_200_is_a_success_whatever_comes_with_it(name: str) -> None:
    async with peer(GOOD[name]) as other:
        assert (await post(other.port))[0].verdict is Outcome.TAKEN
        async with Prober.open("127.0.0.1") as prober:
            assert await prober.probe(PROBE, other.port) is None


@pytest.mark.parametrize("name", BAD)
async def test_what_is_no_success_is_named_and_tried_again(name: str) -> None:
    response, reason = BAD[name]
    async with peer(response) as other:
        [answer] = await post(other.port)
        assert answer.verdict is Outcome.AGAIN
        assert reason in answer.reason


@pytest.mark.parametrize(
    "name", [name for name in BAD if not BAD[name][0].startswith(b"HTTP/1.1 3")]
)
async def test_a_probe_names_what_it_got(name: str) -> None:
    response, reason = BAD[name]
    async with peer(response) as other, Prober.open("127.0.0.1") as prober:
        assert reason in (await prober.probe(PROBE, other.port) or "")


async def test_a_status_counts_though_the_rest_never_comes() -> None:
    async with peer(OK + b"X: y", close=False) as other:
        assert (await post(other.port))[0].verdict is Outcome.TAKEN
        async with Prober.open("127.0.0.1") as prober:
            assert await prober.probe(PROBE, other.port) is None


async def test_a_compressed_body_is_not_shown() -> None:
    body = gzip.compress(b"no such thing")
    head = b"HTTP/1.1 400 Bad\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with peer(head + body) as other:
        assert (await post(other.port))[0].reason == "HTTP 400"


@pytest.mark.parametrize(
    "response",
    [
        OK + b"Content-Length: 5\r\n\r\nhello",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n1\r\n!\r\n0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
    ],
)
async def test_a_connection_is_used_again(response: bytes) -> None:
    async with peer(response, close=False) as other:
        assert {answer.verdict for answer in await post(other.port, times=3)} == {Outcome.TAKEN}
        assert (len(other.requests), other.connections) == (3, 1)


async def test_a_connection_that_the_receiver_closed_meanwhile_is_replaced() -> None:
    async with peer(OK + EMPTY, close=True) as other:
        answers = await post(other.port, times=3)
        assert {answer.verdict for answer in answers} == {Outcome.TAKEN}


async def test_a_missing_server_is_reported_in_plain_words(unused_port: int) -> None:
    refused = f"connection refused by 127.0.0.1:{unused_port}"
    assert (await post(unused_port))[0].reason == refused
    async with Prober.open("127.0.0.1") as prober:
        assert await prober.probe(PROBE, unused_port) == refused


async def test_a_url_is_sent_as_it_was_given() -> None:
    path = "/a%2Fb/../c%20d/%E4?x=a+b&y=%2B&z=[1]|'"
    async with peer(OK + EMPTY) as other:
        await post(other.port, path=path)
        async with Prober.open("127.0.0.1") as prober:
            await prober.probe(Probe(http=path, timeout=5), other.port)
        lines = [request.split(b"\r\n")[0].decode() for request in other.requests]
        assert lines == [f"POST {path} HTTP/1.1", f"GET {path} HTTP/1.1"]


async def test_a_probe_sends_the_host_and_the_headers_that_are_set() -> None:
    probe = Probe(
        http="/healthz", host="shop.example.com", headers={"User-Agent": "me", "X-Probe": "1"}
    )
    async with peer(OK + EMPTY) as other, Prober.open("127.0.0.1") as prober:
        assert await prober.probe(probe, other.port) is None
        [request] = other.requests
        lines = request.decode().split("\r\n")
        assert "Host: shop.example.com" in lines
        assert "X-Probe: 1" in lines
        assert [line for line in lines if line.startswith("User-Agent")] == ["User-Agent: me"]


@pytest.fixture
def tls(tmp_path: Path) -> ssl.SSLContext:
    """A server's context, with a certificate that nobody signed."""
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"),
            *("-subj", "/CN=web"),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    return context


async def test_an_https_probe_takes_any_certificate_unless_it_is_to_verify_it(
    tls: ssl.SSLContext,
) -> None:
    async with peer(OK + EMPTY, tls=tls) as other, Prober.open("127.0.0.1") as prober:
        assert await prober.probe(Probe(https="/", timeout=5), other.port) is None
        verified = Probe(https="/", verify=True, timeout=5, host="shop.example.com")
        why = await prober.probe(verified, other.port) or ""
        assert why.startswith(f"the certificate of 127.0.0.1:{other.port} is refused: self")


async def test_tls_on_one_side_alone_is_named(tls: ssl.SSLContext) -> None:
    async def complain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    plain = await asyncio.start_server(complain, "127.0.0.1", 0)
    port = plain.sockets[0].getsockname()[1]
    async with (
        plain,
        peer(OK + EMPTY, tls=tls) as secure,
        Prober.open("127.0.0.1") as prober,
    ):
        why = await prober.probe(Probe(https="/", timeout=5), port) or ""
        assert why == f"TLS with 127.0.0.1:{port} failed: wrong version number"
        assert await prober.probe(PROBE, secure.port) is not None


async def test_a_certificate_that_the_receiver_made_itself_is_refused(tls: ssl.SSLContext) -> None:
    async with peer(OK + EMPTY, tls=tls) as other:
        url = f"https://127.0.0.1:{other.port}/"
        async with Webhook.open(url, headers={}, timeout=5) as webhook:
            answer = await webhook.post(b"{}", {})
        assert answer.verdict is Outcome.AGAIN
        assert "certificate" in answer.reason


async def test_what_a_receiver_repeats_of_a_password_in_the_url_is_not_shown() -> None:
    said = b"no: p@ss, p%40ss, token=abc, bWU6cEBzcw=="
    head = b"HTTP/1.1 401 No\r\nContent-Length: %d\r\n\r\n" % len(said)
    async with peer(head + said) as other:
        url = f"http://me:p%40ss@127.0.0.1:{other.port}/?token=abc"
        async with Webhook.open(url, headers={}, timeout=5) as webhook:
            answer = await webhook.post(b"{}", {})
        assert answer.reason == "HTTP 401: no: ***, ***, ***, ***"
        assert b"Authorization: Basic bWU6cEBzcw==" in other.requests[0]
