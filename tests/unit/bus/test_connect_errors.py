"""Why a connection failed, in words, and whether another try may help."""

from __future__ import annotations

import socket
import ssl

import nats.errors
import pytest

from bridge.bus.core.connect_errors import describe, is_refusal


@pytest.mark.parametrize(
    ("exc", "words", "refusal"),
    [
        (ConnectionRefusedError(111, "Connect call failed"), "connection refused", False),
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known", False),
        (TimeoutError(), "no answer in time", False),
        (ssl.SSLError(1, "wrong version number"), "wrong version number", True),
        (nats.errors.Error("nats: 'Authorization Violation'"), "Authorization Violation", True),
        (nats.errors.Error("nats: empty response from server when expecting INFO message"),
         "empty response", False),
    ],
)  # fmt: skip
def test_a_reason_is_describe_and_judged(exc: Exception, words: str, refusal: bool) -> None:
    assert words in describe(exc)
    assert is_refusal(exc) is refusal
