"""Credentials in URLs and files, and servers that accept a connection and are silent."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge.box.daemon import Box
from bridge.bus.embedded_server import EmbeddedServer
from bridge.errors import BusError, ConfigError, ConnectFailed, CutOff
from bridge.tasks import task_scope
from tests.support import box_config, connect, eventually, free_ports

USERS = 'users: [ { user: "box", password: "p@ss/w0rd#1" }, { user: "b@x", password: "x,y" } ]'


@contextlib.asynccontextmanager
async def configured(directory: Path, text: str) -> AsyncIterator[EmbeddedServer]:
    directory.mkdir(exist_ok=True)
    file = directory / "server.conf"
    file.write_text(text)
    async with EmbeddedServer(directory / "nats", config=file) as server:
        yield server


def with_login(url: str, login: str) -> str:
    return url.replace("://", f"://{login}@")


@pytest.mark.parametrize("login", ["box:p%40ss%2Fw0rd%231", "b%40x:x%2Cy"])
async def test_a_user_and_password_in_the_url_are_percent_encoded(
    tmp_path: Path, login: str
) -> None:
    async with (
        configured(tmp_path, f"authorization {{ {USERS} }}") as server,
        connect(with_login(server.url, login)) as connection,
    ):
        await connection.flush()


async def test_a_token_in_the_url_is_percent_encoded(tmp_path: Path) -> None:
    async with (
        configured(tmp_path, 'authorization { token: "t/1" }') as server,
        connect(with_login(server.url, "t%2F1")) as connection,
    ):
        await connection.flush()


async def test_a_setting_counts_more_than_what_the_url_says(tmp_path: Path) -> None:
    async with configured(tmp_path, f"authorization {{ {USERS} }}") as server:
        url = with_login(server.url, "box:wrong")
        async with connect(url, user="box", password="p@ss/w0rd#1") as connection:
            await connection.flush()
        with pytest.raises(ConnectFailed) as refused:
            async with connect(url):
                raise AssertionError("the password is wrong")
        assert "wrong" not in str(refused.value)


async def test_servers_that_are_discovered_get_the_credentials_of_the_url(tmp_path: Path) -> None:
    first, second = free_ports(2)

    def config(name: str, port: int, other: int) -> str:
        return (
            f"server_name: {name}\nauthorization {{ {USERS} }}\n"
            f"cluster {{ name: c, listen: 127.0.0.1:{port}, "
            f'routes: [ "nats://127.0.0.1:{other}" ] }}\n'
        )

    async with (
        configured(tmp_path / "a", config("a", first, second)) as a,
        configured(tmp_path / "b", config("b", second, first)) as b,
        connect(with_login(a.url, "box:p%40ss%2Fw0rd%231")) as connection,
    ):
        await eventually(lambda: connection._client.discovered, what="b is discovered")
        await a.stop()
        await eventually(
            lambda: connection.connected and connection._client.connected_url.netloc in b.url,
            within=30,
            what="the client is connected to b",
        )


@contextlib.asynccontextmanager
async def silent() -> AsyncIterator[str]:
    """The URL of a server that accepts connections and sends nothing."""
    writers = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.close()


@pytest.mark.slow
async def test_a_silent_server_leaves_the_others_their_time(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nats.aio.client.shuffle", lambda pool: None)  # the silent ones first
    async with silent() as one, silent() as two, connect(f"{one},{two},{server.url}") as connection:
        assert connection._client.connected_url.netloc in server.url


@pytest.mark.slow
async def test_a_silent_server_alone_is_named(server: EmbeddedServer) -> None:
    async with silent() as url:
        with pytest.raises(ConnectFailed, match=rf"{url}: no answer in [0-9.]+ s"):
            async with connect(url):
                raise AssertionError("it says nothing")


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate, and its key, which is encrypted."""
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-days", "2", "-subj", "/CN=me"),
            *("-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"),
            *("-passout", "pass:hunter22"),
        ],
        check=True,
        capture_output=True,
    )
    return tmp_path / "cert.pem"


async def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_its_pass_phrase(
    certificate: Path,
) -> None:
    key = certificate.with_name("key.pem")
    with pytest.raises(ConfigError, match=r"\[nats\] key: .* is encrypted.*openssl pkey"):
        async with connect("tls://127.0.0.1:1", cert=str(certificate), key=str(key)):
            raise AssertionError("the key is encrypted")


@pytest.mark.parametrize("key", ["creds", "nkey"])
@pytest.mark.parametrize("form", ["{}", "-----BEGIN USER NKEY SEED-----\n{}"])
async def test_a_secret_in_place_of_a_file_is_not_shown(key: str, form: str) -> None:
    seed = "SU" + "A" * 56
    with pytest.raises(ConfigError, match="must name a file") as refused:
        async with connect("nats://127.0.0.1:1", **{key: form.format(seed)}):
            raise AssertionError("that is no file")
    assert seed not in str(refused.value)


async def test_a_limit_of_subscriptions_is_named_with_its_cure(tmp_path: Path) -> None:
    async with (
        configured(tmp_path, "max_subscriptions: 5") as server,
        connect(server.url) as connection,
    ):
        for number in range(10):
            await connection.listen(f"box.{number}", lambda message: None)
        with pytest.raises(BusError, match=r"maximum subscriptions exceeded.*max_subscriptions"):
            await connection.flush()
        await eventually(lambda: not connection.connected, what="the connection is lost again")
        with pytest.raises(CutOff, match=r"maximum subscriptions exceeded.*max_subscriptions"):
            connection.publish("box.x")


async def test_a_limit_of_connections_is_named_with_its_cure(tmp_path: Path) -> None:
    async with (
        configured(tmp_path, "max_connections: 1") as server,
        connect(server.url) as connection,
    ):
        with pytest.raises(ConnectFailed, match=r"maximum connections exceeded. Raise max_conn"):
            async with connect(server.url):
                raise AssertionError("there may be one connection")
        await connection.flush()


@pytest.mark.slow
async def test_a_box_that_may_not_subscribe_enough_names_the_limit_and_retries(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cure = "maximum subscriptions exceeded: .* raise max_subscriptions"
    async with configured(tmp_path, "max_subscriptions: 10") as server, task_scope() as tasks:
        box = Box(box_config(tmp_path, server.url))
        work = tasks.create_task(box.run())
        await eventually(lambda: re.search(f"cannot start yet: .*{cure}", caplog.text))
        assert not work.done()
        assert not box.ready
        box.stop()
        await work
