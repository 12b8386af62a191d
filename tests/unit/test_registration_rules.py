"""What a registration may say, whoever says it."""

from __future__ import annotations

import pytest

from bridge.errors import ProtocolError
from bridge.registration import MAX_METADATA, check_endpoint, check_metadata


@pytest.mark.parametrize(
    "endpoint",
    ["10.0.0.5:80", "web-1.example.com:8080", "localhost:65535", "[::1]:1", "[fe80::1%eth0]:80"],
)
def test_host_and_port_are_an_endpoint(endpoint: str) -> None:
    assert check_endpoint(endpoint) == endpoint


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "web",
        ":80",
        "web:",
        "web:0",
        "web:65536",
        "web:-1",
        "web:http",
        "web:٨٠",
        "::1:80",
        "[::1]",
        "[web]:80",
        "[]:80",
        "http://web:80",
        "web:80/path",
        "a b:80",
        "web:80\n",
        "ü:80",
        "a" * 254 + ":80",
    ],
)
def test_anything_else_is_none(endpoint: str) -> None:
    with pytest.raises(ProtocolError, match="endpoint"):
        check_endpoint(endpoint)


def test_metadata_is_bounded_in_bytes() -> None:
    fits = {"k": "v" * (MAX_METADATA - 1)}
    assert check_metadata(fits) == fits
    with pytest.raises(ProtocolError, match="metadata"):
        check_metadata({"k": "v" * MAX_METADATA})
    with pytest.raises(ProtocolError, match="metadata"):
        check_metadata({"k": "é" * (MAX_METADATA // 2)})
