"""The metrics endpoint: an address that cannot be used is a ConfigError."""

from __future__ import annotations

import contextlib
import socket
import urllib.request

import pytest

from bridge import metrics_port
from bridge.errors import ConfigError
from bridge.observe import Metrics


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:x", "127.0.0.1:99999", "nowhere.invalid:1", f"{'a' * 64}:1", "a..b:1"],
)
def test_an_address_that_cannot_be_used_is_a_config_error(address: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on {address}"):
        Metrics().serve(address)


def test_a_port_in_use_is_a_config_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConfigError, match="Address already in use"):
            Metrics().serve(address)


@pytest.mark.slow
def test_silent_connections_neither_use_up_descriptors_nor_stop_scrapes(
    monkeypatch: pytest.MonkeyPatch, unused_port: int
) -> None:
    monkeypatch.setattr(metrics_port._Handler, "timeout", 0.5)
    Metrics().serve(f"127.0.0.1:{unused_port}")
    with contextlib.ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", unused_port)))
            for _ in range(2 * metrics_port.MAX_CONNECTIONS)
        ]
        for connection in silent:
            connection.settimeout(30)
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(100) == b""  # the server has ended it
    with urllib.request.urlopen(f"http://127.0.0.1:{unused_port}/metrics") as response:
        assert b"box_bridge_ready" in response.read()
