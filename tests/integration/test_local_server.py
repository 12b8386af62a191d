"""The server of `box-bridge up`: programs of its user find its key, others are refused."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from bridge.bus.local_server import local_server
from bridge.config.local_key import find_local_key
from bridge.config.nats_context import check_context, read_context, write_context
from bridge.errors import ConfigError, ConnectFailed
from tests.support import connect


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


async def test_programs_of_the_same_user_connect_without_being_given_the_key(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with local_server(tmp_path / "nats") as (server, key):
        async with connect(server.url) as connection:
            await connection.flush()
        assert key.is_relative_to(state)
        assert (mode(key), mode(key.parent)) == (0o600, 0o700)
        for name in ("lock", "nats-server.conf"):
            assert mode(tmp_path / "nats" / name) == 0o600
        assert key.read_text().strip() not in (tmp_path / "nats" / "nats-server.conf").read_text()
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "of-another-user"))
        with pytest.raises(ConnectFailed, match=r"(?i)authorization"):
            async with connect(server.url):
                pass
        async with connect(server.url, nkey=str(key)) as connection:
            await connection.flush()
    assert not key.exists()


async def test_a_connection_finds_the_new_key_of_a_server_that_was_started_again(
    state: Path, tmp_path: Path
) -> None:
    async with local_server(tmp_path / "nats") as (server, key):
        first, port = key.read_text(), int(server.url.rpartition(":")[2])
    async with local_server(tmp_path / "nats", port=port) as (server, key):
        assert key.read_text() != first
        async with connect(server.url) as connection:
            await connection.flush()


@pytest.mark.usefixtures("state")
@pytest.mark.parametrize(
    "urls",
    [
        [],
        ["nats://127.0.0.1:1"],
        ["nats://10.0.0.1:4222"],
        ["nats://127.0.0.1", "nats://127.0.0.1"],
    ],
)
def test_no_key_is_found_for_other_servers(urls: list[str]) -> None:
    assert find_local_key(urls) == ""


def test_a_context_is_written_for_the_nats_cli_and_no_other_context_is_replaced(
    tmp_path: Path,
) -> None:
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    key = tmp_path / "4222.nk"
    for url in ("nats://127.0.0.1:4222", "nats://127.0.0.1:4223"):
        write_context("local", url, key, environ)
        assert read_context("local", environ) == {"url": url, "nkey": str(key)}
    file = tmp_path / "nats" / "context" / "local.json"
    assert mode(file) == 0o600
    file.write_text(json.dumps({"url": "nats://prod.example.com"}))
    with pytest.raises(ConfigError, match="choose another name"):
        check_context("local", environ)
    file.write_text("nonsense")
    with pytest.raises(ConfigError, match="cannot be replaced"):
        write_context("local", "nats://127.0.0.1:4222", key, environ)
    with pytest.raises(ConfigError, match="is not a name"):
        check_context("../x", environ)
