"""The checks of registrations, whatever client sends them."""

from __future__ import annotations

import pytest

from bridge.errors import ProtocolError
from bridge.protocol import InstanceDeregistration, encode
from bridge.settings import BoxConfig
from bridge.validation import (
    DISAGREE,
    MAX_METADATA,
    address_blocker,
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


@pytest.mark.parametrize(
    "address",
    ["10.0.0.5", "127.0.0.1", "::1", "fd00::5", "localhost", "host-a", "host_a.example.com."],
)
def test_an_address_or_a_name_is_taken(address: str) -> None:
    assert address_blocker(address) is None
    assert BoxConfig(address=address).address == address


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("0.0.0.0", "every address"),
        ("::", "every address"),
        ("0:0:0:0:0:0:0:0", "every address"),
        ("::ffff:0.0.0.0", "every address"),
        ("0", "every address"),
        ("*", "every address"),
        ("[::1]", "without them"),
        ("[fd00::5]:80", "has brackets"),
        ("http://10.0.0.5", "is a URL"),
        ("10.0.0.5/24", "is a URL"),
        ("10.0.0.5:80", "has a port"),
        ("host-a:80", "has a port"),
        ("host-a:", "has a port"),
        ("my host", "space"),
        ("127.0.0.1 ", "space"),
        ("127.0.0.1\n", "space"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("10.0.0.300", "neither"),
        ("10.0.0", "neither"),
        ("a..b", "neither"),
        ("-a", "neither"),
        ("", "neither"),
        ("fe80::1%eth0", "zone"),
        ("fd00::5::1", "neither"),
        ("224.0.0.1", "group"),
        ("ff02::1", "group"),
        ("255.255.255.255", "group"),
    ],
)
def test_an_address_that_no_gateway_reaches_is_refused_with_the_cure(
    address: str, reason: str
) -> None:
    with pytest.raises(ValueError, match=r"address = ") as refused:
        BoxConfig(address=address)
    assert reason in str(refused.value)
