"""The metrics endpoint: an address that cannot be used is a ConfigError."""

from __future__ import annotations

import socket

import pytest

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
