"""The embedded server: when it is ready, how it ends with its owner, what its store keeps."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.api import jetstream
from bridge.bus.jetstream.publish import store
from bridge.bus.server_binary import find_binary
from bridge.errors import ConfigError, ServerNotStarted
from tests.paths import REPOSITORY
from tests.support import connect, eventually


def state_of(pid: int) -> str:
    """The kernel's letter for what a process does; empty when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def alive(pid: int) -> bool:
    return state_of(pid) not in ("", "Z")


async def test_it_is_ready_when_start_returns_and_ended_when_stop_returns(tmp_path: Path) -> None:
    async with EmbeddedServer(tmp_path) as server:
        pid = server.pid
        assert alive(pid)
        async with connect(server.url) as connection:
            assert connection.server_info["jetstream"]
    assert not alive(pid)
    assert "Server is ready" in server.log_file.read_text()
    assert not list(tmp_path.glob("ports-*"))


async def test_it_runs_the_configuration_in_deploy(server: EmbeddedServer) -> None:
    deployed = REPOSITORY / "deploy" / "nats" / "nats-server.conf"
    packaged = REPOSITORY / "bridge" / "bus" / "nats-server.conf"
    assert packaged.read_text() == deployed.read_text()
    assert "sync_interval: always" in deployed.read_text()
    cmdline = Path(f"/proc/{server.pid}/cmdline").read_text().split("\0")
    assert cmdline[cmdline.index("-c") + 1].endswith("nats-server.conf")
    command = [str(find_binary()), "-t", "-c", str(deployed)]
    assert subprocess.run(command, capture_output=True, check=True).returncode == 0


async def test_acknowledged_messages_survive_a_kill_and_a_restart(
    server: EmbeddedServer,
) -> None:
    async with connect(server.url) as connection:
        await topology.ensure(connection)
        for number in range(50):
            await store(connection, "box.events.web", b"%d" % number)
        url = server.url
        await server.kill()
        await server.start()
        assert server.url == url
        await connection.wait_connected()
        info = await jetstream(connection).stream_info("BOX_EVENTS")
        assert info.state.messages == 50


async def test_it_dies_with_its_owner_even_by_sigkill(tmp_path: Path) -> None:
    code = (
        "import asyncio, os, signal, sys\n"
        "from bridge.bus.embedded_server import EmbeddedServer\n"
        "async def main():\n"
        "    server = EmbeddedServer(sys.argv[1])\n"
        "    await server.start()\n"
        "    print(server.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    owner = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
    )
    assert owner.returncode == -9
    pid = int(owner.stdout)
    await eventually(lambda: not alive(pid), what="the server is gone")


async def test_a_port_in_use_is_reported_with_the_end_of_the_servers_log(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        with pytest.raises(ServerNotStarted, match="address already in use"):
            await EmbeddedServer(tmp_path, port=port).start()


async def test_a_server_that_does_not_get_ready_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary, pid_file = tmp_path / "never-ready", tmp_path / "pid"
    binary.write_text(f"#!/bin/sh\necho $$ > {pid_file}\nexec sleep 600\n")
    binary.chmod(0o755)
    monkeypatch.setenv("NATS_SERVER_BIN", str(binary))
    server = EmbeddedServer(tmp_path, patience=0.5)
    with pytest.raises(ServerNotStarted, match=r"not ready within 0\.5 s"):
        await server.start()
    assert server.pid == 0
    assert not alive(int(pid_file.read_text()))


async def test_a_pause_keeps_connections_and_answers_nothing(server: EmbeddedServer) -> None:
    server.pause()
    assert state_of(server.pid) == "T"
    server.resume()
    async with connect(server.url) as connection:
        await connection.flush()


def test_the_binary_can_be_chosen_and_a_wrong_choice_raises(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = find_binary()
    assert os.access(path, os.X_OK)
    monkeypatch.setenv("NATS_SERVER_BIN", "/bin/sh")
    assert find_binary() == Path("/bin/sh")
    monkeypatch.setenv("NATS_SERVER_BIN", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="NATS_SERVER_BIN"):
        find_binary()


@pytest.mark.slow
async def test_a_store_has_one_server_at_a_time(server: EmbeddedServer) -> None:
    with pytest.raises(ServerNotStarted, match=r"another server runs in .*nats: stop it"):
        await EmbeddedServer(server.directory).start()
    async with connect(server.url) as connection:
        assert connection.connected
    await server.stop()
    async with EmbeddedServer(server.directory) as following:
        assert alive(following.pid)


async def test_an_unusable_directory_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ServerNotStarted, match="file/nats cannot be used: Not a directory"):
        await EmbeddedServer(tmp_path / "file" / "nats").start()
