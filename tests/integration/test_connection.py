"""A connection that outlives servers, clients and peers."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.errors import (
    BusError,
    ConfigError,
    ConnectFailed,
    CutOff,
    NoReply,
    NoResponders,
    NotPermitted,
    StoreUnsuitable,
)
from bridge.settings import NatsConfig
from tests.support import connect, eventually


async def echo(connection: Connection, subject: str = "echo") -> None:
    """Answer on `subject` with what was sent."""

    def answer(message: Message) -> None:
        connection.publish(message.reply, message.data)

    await connection.listen(subject, answer)
    await connection.flush()


@asynccontextmanager
async def raw(server: EmbeddedServer) -> AsyncIterator[asyncio.StreamWriter]:
    """A peer that sends what bytes it likes; what was sent has reached the server at the end."""
    port = int(server.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await reader.readline()
    writer.write(b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\n')
    try:
        yield writer
        writer.write(b"PING\r\n")
        await writer.drain()
        while (await reader.readline()) != b"PONG\r\n":
            pass
    finally:
        writer.close()
        await writer.wait_closed()


# ── asking ───────────────────────────────────────────────────────────────────────────────


async def test_a_request_ends_in_an_answer_or_a_known_outcome(
    server: EmbeddedServer,
) -> None:
    async with connect(server.url) as connection:
        await echo(connection)
        await connection.listen("silent", lambda message: None)
        await connection.flush()
        assert (await connection.request("echo", b"hello")).data == b"hello"
        with pytest.raises(NoResponders):
            await connection.request("nobody")
        with pytest.raises(NoReply, match="outcome is unknown"):
            await connection.request("silent", timeout=0.05)
        assert not connection._requests


async def test_many_requests_at_once_are_each_given_their_own_answer(
    server: EmbeddedServer,
) -> None:
    async with connect(server.url) as connection:
        await echo(connection)
        answers = await asyncio.gather(
            *(connection.request("echo", b"%d" % number) for number in range(500))
        )
        assert [answer.data for answer in answers] == [b"%d" % number for number in range(500)]


async def test_a_message_that_cannot_be_sent_raises_and_the_connection_survives(
    server: EmbeddedServer,
) -> None:
    async with connect(server.url) as connection:
        await echo(connection)
        with pytest.raises(BusError, match="max_payload"):
            connection.publish("echo", b"x" * (connection.max_payload + 1))
        assert (await connection.request("echo", b"still here")).data == b"still here"


# ── surviving ────────────────────────────────────────────────────────────────────────────


async def test_frames_that_end_nats_pys_read_loop_are_survived(server: EmbeddedServer) -> None:
    async with connect(server.url) as connection:
        seen: list[Message] = []
        await connection.listen("box.>", seen.append)
        await echo(connection)
        bad_head = b"NATS/1.0\r\n\xff\xfe: \xff\r\nnonsense\r\n\r\n"
        async with raw(server) as peer:
            peer.write(b"PUB box.\xff\xfe 2\r\nhi\r\n")
            peer.write(b"PUB box.a\x0bb\x0c 2\r\nhi\r\n")
            size = len(bad_head)
            peer.write(b"HPUB box.h %d %d\r\n%shi\r\n" % (size, size + 2, bad_head))
            peer.write(b"HPUB box.h 3 5\r\nABChi\r\n")
        await eventually(lambda: len(seen) == 4, what="all four messages are delivered")
        assert [m.malformed for m in seen] == [False, False, True, True]
        assert (await connection.request("echo", b"x")).data == b"x"


async def test_a_handler_that_raises_costs_one_message(server: EmbeddedServer) -> None:
    async with connect(server.url) as connection:
        seen: list[bytes] = []

        def handler(message: Message) -> None:
            if message.data == b"bad":
                raise ValueError
            seen.append(message.data)

        await connection.listen("x", handler)
        await connection.flush()
        for data in (b"1", b"bad", b"2"):
            connection.publish("x", data)
        await connection.flush()
        assert seen == [b"1", b"2"]
        counted = connection.metrics.bus.labels("handler_error")._value.get()
        assert counted == 1


async def test_it_comes_back_after_a_server_kill_with_its_subscriptions(
    server: EmbeddedServer,
) -> None:
    async with connect(server.url) as connection:
        told: list[bool] = []
        connection.watch(told.append)
        await echo(connection)
        await server.kill()
        await eventually(lambda: not connection.connected)
        assert connection.cut_off_for() > 0
        await server.start()
        await connection.wait_connected()
        assert (await connection.request("echo", b"x")).data == b"x"
        assert told == [False, True]
        assert connection.cut_off_for() == 0


async def test_nothing_is_sent_while_cut_off_nor_afterwards(server: EmbeddedServer) -> None:
    async with connect(server.url) as connection:
        seen: list[bytes] = []
        await connection.listen("x", lambda message: seen.append(message.data))
        await server.kill()
        await eventually(lambda: not connection.connected)
        with pytest.raises(CutOff):
            connection.publish("x", b"late")
        with pytest.raises(CutOff):
            await connection.request("x", b"late")
        with pytest.raises(CutOff):
            await connection.flush()
        await server.start()
        await connection.wait_connected()
        connection.publish("x", b"in time")
        await eventually(lambda: seen)
        assert seen == [b"in time"]


async def test_a_request_under_way_when_the_server_dies_is_unknown_at_once(
    server: EmbeddedServer,
) -> None:
    async with connect(server.url) as connection:
        await connection.listen("silent", lambda message: None)
        await connection.flush()
        loop = asyncio.get_running_loop()
        asking = asyncio.ensure_future(connection.request("silent", timeout=60))
        started = loop.time()
        await asyncio.sleep(0)
        await server.kill()
        with pytest.raises(NoReply):
            await asking
        assert loop.time() - started < 30


@pytest.mark.slow
async def test_a_client_that_the_server_closed_for_good_is_replaced(
    server: EmbeddedServer,
) -> None:
    async with connect(server.url) as connection:
        await echo(connection)
        before = connection._client
        before._pending.append(b"NONSENSE\r\n")  # the server answers -ERR and hangs up
        await before._flush_pending()
        await eventually(lambda: connection._client is not before)
        await connection.wait_connected()
        assert (await connection.request("echo", b"x")).data == b"x"
        assert connection.metrics.bus.labels("disconnected")._value.get() == 1


async def test_a_client_whose_read_loop_has_ended_is_replaced(server: EmbeddedServer) -> None:
    async with connect(server.url) as connection:
        await echo(connection)
        before = connection._client
        assert before._reading_task is not None
        before._reading_task.cancel()
        await eventually(lambda: connection._client is not before)
        await connection.wait_connected()
        assert (await connection.request("echo", b"x")).data == b"x"
        assert connection.metrics.bus.labels("zombie")._value.get() == 1


@pytest.mark.slow
async def test_a_frozen_server_is_noticed_within_seven_seconds(server: EmbeddedServer) -> None:
    async with connect(server.url) as connection:
        server.pause()
        await eventually(lambda: not connection.connected)  # and what others take
        server.resume()
        await eventually(lambda: connection.connected)


async def test_closing_a_listener_ends_it(server: EmbeddedServer) -> None:
    async with connect(server.url) as connection:
        seen: list[Message] = []
        listener = await connection.listen("x", seen.append)
        await listener.close()
        await listener.close()
        connection.publish("x")
        await connection.flush()
        assert seen == []


# ── connecting ───────────────────────────────────────────────────────────────────────────


async def test_a_missing_server_is_reported_soon_with_its_address(server: EmbeddedServer) -> None:
    url = server.url
    await server.stop()
    with pytest.raises(ConnectFailed, match=url):
        async with Connection.open(NatsConfig(url=url), name="test"):
            raise AssertionError("there is no server")


async def test_an_exception_in_the_block_comes_out_as_it_is(server: EmbeddedServer) -> None:
    with pytest.raises(LookupError, match="mine"):
        async with connect(server.url):
            raise LookupError("mine")


@asynccontextmanager
async def configured(tmp_path: Path, text: str) -> AsyncIterator[EmbeddedServer]:
    file = tmp_path / "server.conf"
    file.write_text(text)
    async with EmbeddedServer(tmp_path / "secure", config=file) as server:
        yield server


async def test_user_and_password_or_token_are_used_and_a_wrong_one_is_reported(
    tmp_path: Path,
) -> None:
    async with configured(tmp_path, "authorization { user: u, password: p }") as server:
        async with connect(server.url, user="u", password="p") as connection:
            await connection.flush()
        with pytest.raises(ConnectFailed, match=r"Authorization Violation|reset by peer"):
            async with connect(server.url, user="u", password="wrong"):
                raise AssertionError("the password is wrong")
    async with (
        configured(tmp_path, "authorization { token: t }") as server,
        connect(server.url, token="t") as connection,
    ):
        await connection.flush()


async def test_an_nkey_is_used(tmp_path: Path) -> None:
    nkeys = pytest.importorskip("nkeys")
    from nacl.signing import SigningKey

    seed = nkeys.encode_seed(bytes(SigningKey.generate()), prefix=nkeys.PREFIX_BYTE_USER)
    public = nkeys.from_seed(bytearray(seed)).public_key.decode()
    file = tmp_path / "user.nk"
    file.write_bytes(bytes(seed))
    async with (
        configured(tmp_path, f"authorization {{ users: [ {{ nkey: {public} }} ] }}") as server,
        connect(server.url, nkey=str(file)) as connection,
    ):
        await connection.flush()


async def test_a_denied_subject_raises_at_once(tmp_path: Path) -> None:
    user = '{ user: u, password: p, permissions: { publish: ["_INBOX.>"] } }'
    async with (
        configured(tmp_path, f"authorization {{ users: [{user}] }}") as server,
        connect(server.url, user="u", password="p") as connection,
    ):
        with pytest.raises(NotPermitted, match=r"publish on box\.scale"):
            await connection.request("box.scale", timeout=30)
        with pytest.raises(StoreUnsuitable, match=r"STREAM\.INFO\.BOX_"):
            await topology.ensure(connection)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
async def test_tls_is_used_where_the_server_has_it(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout {key}"
    make += f" -out {cert} -addext subjectAltName=DNS:localhost,IP:127.0.0.1"
    subprocess.run(make.split(), check=True, capture_output=True)
    tls = f'tls {{ cert_file: "{cert}", key_file: "{key}" }}'
    async with configured(tmp_path, tls) as server:
        url = server.url.replace("nats://", "tls://")
        async with connect(url, ca=str(cert)) as connection:
            assert isinstance(
                connection._client._transport._io_writer.get_extra_info("ssl_object"),
                ssl.SSLObject,
            )
        with pytest.raises(ConnectFailed):
            async with connect(url):  # a stranger's certificate
                raise AssertionError("nobody vouches for the certificate")


async def test_tls_to_a_server_without_it_is_refused_before_anything_is_sent(
    tmp_path: Path,
) -> None:
    received = b""

    async def plaintext_server(r: asyncio.StreamReader, w: asyncio.StreamWriter) -> None:
        nonlocal received
        w.write(b'INFO {"server_id":"x","version":"2.15.1","max_payload":1048576}\r\n')
        received += await r.read()
        w.close()

    listening = await asyncio.start_server(plaintext_server, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with listening:
        with pytest.raises(ConnectFailed, match="does not require TLS"):
            async with connect(f"tls://127.0.0.1:{port}", user="u", password="secret"):
                raise AssertionError("this must not connect")
    assert received == b""


async def test_files_that_cannot_be_loaded_are_a_configuration_error(
    server: EmbeddedServer,
) -> None:
    with pytest.raises(ConfigError, match=r"/none.pem cannot be read: No such file"):
        async with connect(server.url, ca="/none.pem"):
            raise AssertionError("there is no such file")
