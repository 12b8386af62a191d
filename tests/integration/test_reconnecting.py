"""What a connection survives: frozen peers, broken files, servers that hang up or move."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.errors import BusError, ConfigError, ConnectFailed
from bridge.settings import NatsConfig
from tests.integration.test_connection import configured, echo
from tests.support import connect, eventually

INFO = b'INFO {"server_id":"x","version":"2.15.1","max_payload":8000000,"headers":true}\r\n'


async def answer_pings(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        if line.startswith(b"PING"):
            writer.write(b"PONG\r\n")


@asynccontextmanager
async def impostor(
    serve: Callable[[int, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """A server that does as `serve` says with its first connection, its second and so on."""
    serving: list[asyncio.Task[None] | None] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.current_task())
        with contextlib.suppress(asyncio.CancelledError, ConnectionError):
            await serve(len(serving), reader, writer)
        writer.transport.abort()

    listening = await asyncio.start_server(take, "127.0.0.1", 0)
    async with listening:
        yield f"nats://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        tasks = [task for task in serving if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)
        await asyncio.sleep(0)


@pytest.mark.slow
async def test_a_frozen_server_is_noticed_with_unsent_bytes_on_the_way(
    server: EmbeddedServer,
) -> None:
    async with connect(server.url) as connection:
        server.pause()
        for _ in range(14):  # more than the socket takes
            connection.publish("bulk", b"x" * 1_000_000)
            await asyncio.sleep(0)
        await eventually(lambda: not connection.connected)
        server.resume()
        await eventually(lambda: connection.connected)


async def test_the_end_of_an_old_connection_does_not_touch_the_new_one() -> None:
    first: list[asyncio.StreamWriter] = []

    async def serve(made: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(INFO)
        if made > 1:
            await answer_pings(reader, writer)
            return
        first.append(writer)
        await reader.readline()
        await reader.readline()
        writer.write(b"PONG\r\n")
        await asyncio.Event().wait()  # and reads no more

    async with impostor(serve) as url, connect(url) as connection:
        told: list[bool] = []
        connection.watch(told.append)
        for _ in range(2):
            connection.publish("bulk", b"x" * 7_000_000)
            await asyncio.sleep(0)
        first[0].write(b"-ERR 'User Authentication Expired'\r\n")
        await eventually(lambda: told == [False, True])
        first[0].transport.abort()
        await connection.flush()
        await connection.flush()
        assert told == [False, True]


async def test_a_server_that_hangs_up_at_once_is_asked_again_with_a_pause(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "stamina")
    async with (
        configured(tmp_path, "max_subscriptions: 2") as server,
        connect(server.url) as connection,
    ):
        for number in range(4):
            await connection.listen(f"subject.{number}", lambda message: None)
        await eventually(lambda: any(record.name == "stamina" for record in caplog.records))


async def test_another_server_of_the_cluster_takes_over(tmp_path: Path, unused_port: int) -> None:
    cluster = "cluster {{ name: c, listen: '127.0.0.1:{}', routes: ['nats://127.0.0.1:{}'] }}"
    text = "server_name: {}\n" + cluster
    files = [tmp_path / "first.conf", tmp_path / "second.conf"]
    files[0].write_text(text.format("first", unused_port, unused_port))
    files[1].write_text(text.format("second", -1, unused_port))
    async with (
        EmbeddedServer(tmp_path / "first", config=files[0]) as first,
        EmbeddedServer(tmp_path / "second", config=files[1]) as second,
        connect(first.url) as connection,
    ):
        await echo(connection)
        await eventually(lambda: connection._client.discovered)
        await first.kill()
        await eventually(
            lambda: connection.connected and connection._client.connected_url.netloc in second.url
        )
        assert (await connection.request("echo", b"x")).data == b"x"


async def test_the_first_connection_is_tried_for_as_long_as_there_is_patience() -> None:
    async def serve(made: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if made > 5:
            writer.write(INFO)
            await answer_pings(reader, writer)

    async with impostor(serve) as url:
        settings = NatsConfig(url=url)
        async with Connection.open(settings, name="test", patience=30) as connection:
            await connection.flush()


# ── credentials and certificates ─────────────────────────────────────────────────────────


async def test_an_nkey_file_that_was_broken_for_a_while_is_read_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nkeys = pytest.importorskip("nkeys")
    from nacl.signing import SigningKey

    seed = nkeys.encode_seed(bytes(SigningKey.generate()), prefix=nkeys.PREFIX_BYTE_USER)
    public = nkeys.from_seed(bytearray(seed)).public_key.decode()
    file = tmp_path / "user.nk"
    file.write_bytes(bytes(seed))
    users = f"authorization {{ users: [ {{ nkey: {public} }} ] }}"
    async with (
        configured(tmp_path, users) as server,
        connect(server.url, nkey=str(file)) as connection,
    ):
        file.write_bytes(b"half a se")
        await server.kill()
        await server.start()
        await eventually(lambda: "is not a valid one" in caplog.text)
        file.write_bytes(bytes(seed))
        await eventually(lambda: connection.connected)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("creds", ""),
        ("creds", "-----BEGIN USER NKEY SEED-----\nSUAM\n------END USER NKEY SEED------\n"),
        ("nkey", "garbage"),
        ("nkey", "\N{SNOWMAN}"),
    ],
)
async def test_a_credentials_file_that_holds_none_is_a_configuration_error(
    tmp_path: Path, key: str, text: str
) -> None:
    file = tmp_path / "secret"
    file.write_text(text)
    with pytest.raises(ConfigError, match=key):
        async with connect("nats://127.0.0.1:1", **{key: str(file)}):
            raise AssertionError("there are no credentials")


def certify(directory: Path) -> None:
    """Put a new self-signed certificate into `directory`."""
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    make += f" -keyout {directory}/key.pem -out {directory}/cert.pem"
    make += " -addext subjectAltName=DNS:localhost,IP:127.0.0.1"
    subprocess.run(make.split(), check=True, capture_output=True)


needs_openssl = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="needs openssl to make a certificate"
)


@pytest.mark.slow
@needs_openssl
async def test_a_renewed_certificate_is_trusted_once_its_authority_is(tmp_path: Path) -> None:
    cert = tmp_path / "cert.pem"
    certify(tmp_path)
    tls = f'tls {{ cert_file: "{cert}", key_file: "{tmp_path}/key.pem" }}'
    async with configured(tmp_path, tls) as server, connect(server.url, ca=str(cert)) as connection:
        await server.kill()
        certify(tmp_path)
        await server.start()
        await eventually(lambda: connection.connected)


@needs_openssl
async def test_a_server_without_tls_gets_no_password_when_tls_is_set_up(tmp_path: Path) -> None:
    certify(tmp_path)
    received = b""

    async def serve(made: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        writer.write(INFO)
        received += await reader.read()

    async with impostor(serve) as url:
        with pytest.raises(ConnectFailed, match="does not require TLS"):
            async with connect(url, user="u", password="s", ca=str(tmp_path / "cert.pem")):
                raise AssertionError("this must not connect")
    assert received == b""


@pytest.mark.parametrize("prefix", ["", "a.", "a b", "x.>"])
def test_an_inbox_prefix_that_is_no_subject_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="inbox_prefix"):
        NatsConfig(inbox_prefix=prefix)


def test_no_server_is_refused() -> None:
    with pytest.raises(ValueError, match="not a NATS URL"):
        NatsConfig(url=" , ")


# ── flushing ─────────────────────────────────────────────────────────────────────────────


async def test_a_flush_that_is_cancelled_as_it_ends_is_cancelled(server: EmbeddedServer) -> None:
    async with connect(server.url) as connection:
        client = connection._client
        take_pong = client.take_pong

        def pong() -> None:
            take_pong()
            flushing.cancel()

        client.take_pong = pong
        flushing = asyncio.ensure_future(connection.flush())
        with pytest.raises(asyncio.CancelledError):
            await flushing
        client.take_pong = take_pong


async def test_what_was_sent_last_arrives_before_the_connection_closes(
    server: EmbeddedServer,
) -> None:
    seen: list[bytes] = []
    async with connect(server.url) as reader:
        await reader.listen("x", lambda message: seen.append(message.data))
        await reader.flush()
        async with connect(server.url) as connection:
            connection.publish("x", b"last")
        await reader.flush()
        assert seen == [b"last"]


async def test_a_flush_ends_with_its_connection(server: EmbeddedServer) -> None:
    async with connect(server.url) as connection:
        server.pause()
        flushing = asyncio.ensure_future(connection.flush(timeout=60))
        await asyncio.sleep(0)
        await server.kill()
        with pytest.raises(BusError):
            await flushing
