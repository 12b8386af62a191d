"""The checks of registrations, whatever client sends them."""

from __future__ import annotations

import pytest

from bridge.errors import ProtocolError
from bridge.protocol import InstanceDeregistration, encode
from bridge.validation import (
    DISAGREE,
    MAX_METADATA,
    check_endpoint,
    check_metadata,
    read_withdrawal,
)


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
def test_anything_else_is_refused_as_an_endpoint(endpoint: str) -> None:
    with pytest.raises(ProtocolError, match="endpoint"):
        check_endpoint(endpoint)


def test_metadata_has_a_limit_in_bytes() -> None:
    fits = {"k": "v" * (MAX_METADATA - 1)}
    assert check_metadata(fits) == fits
    with pytest.raises(ProtocolError, match="metadata"):
        check_metadata({"k": "v" * MAX_METADATA})
    with pytest.raises(ProtocolError, match="metadata"):
        check_metadata({"k": "é" * (MAX_METADATA // 2)})


def test_a_withdrawal_for_another_instance_than_its_subject_names_is_refused() -> None:
    gone = InstanceDeregistration(instance_id="web-1", service="web", reason="scaled down")
    assert read_withdrawal(encode(gone), "web", "web-1") == gone
    assert read_withdrawal(encode(gone), "web", "web-2") == DISAGREE
    assert read_withdrawal(encode(gone), "api", "web-1") == DISAGREE
    assert read_withdrawal(b"", "web", "web-1") == "malformed"
    longest = InstanceDeregistration(instance_id="web-1", service="web", reason="\x01" * 1000)
    assert read_withdrawal(encode(longest), "web", "web-1") == longest
    longer = InstanceDeregistration(instance_id="web-1", service="web", reason="x" * 16 * 1024)
    assert read_withdrawal(encode(longer), "web", "web-1") == "too large"


def test_metadata_that_is_not_unicode_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="not Unicode"):
        check_metadata({"a": "\udcff"})
