"""What an HTTP answer means, and which endpoints there can be."""

from __future__ import annotations

import asyncio
import socket
import ssl
from datetime import UTC, datetime
from typing import NoReturn

import pytest

from bridge.errors import ConfigError
from bridge.gateway.relay.webhook import Outcome, Webhook, check, judge, retry_after, shown
from bridge.http_exchange import BadResponse

NOW = datetime(2026, 11, 21, 8, tzinfo=UTC)
_TLS_ERRORS = (ssl.SSLError(1, "wrong version"), ssl.SSLCertVerificationError("self-signed"))
_TLS_ERRORS[0].reason = "WRONG_VERSION_NUMBER"
_TLS_ERRORS[1].verify_message = "self-signed certificate"


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        *((status, Outcome.TAKEN) for status in (200, 201, 202, 204, 299)),
        *((status, Outcome.REFUSED) for status in (400, 401, 403, 404, 409, 410, 422, 499)),
        *((status, Outcome.AGAIN) for status in (408, 425, 429, 500, 501, 502, 503, 504, 599)),
        *((status, Outcome.AGAIN) for status in (300, 301, 302, 304, 307, 308)),
    ],
)
def test_a_status_decides_whether_a_retry_can_help(status: int, verdict: Outcome) -> None:
    assert judge(status).verdict is verdict


def test_the_reason_has_the_receivers_text() -> None:
    assert judge(400, "no such thing").reason == "HTTP 400: no such thing"
    assert "redirects are not followed" in judge(302).reason


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        (" 120 ", 120),
        ("86400", 3600),
        ("9" * 5000, 3600),
        ("Sat, 21 Nov 2026 08:00:30 GMT", 30),
        ("Sat, 21 Nov 2026 07:00:00 GMT", 0),
        ("Sat, 21 Nov 2036 08:00:00 GMT", 3600),
        ("0" * 20 + "30", 30),
        ("Mon, 20 Nov 9999999999 12:00:00 GMT", None),
        ("Mon, 20 Nov 9999 12:00:00 GMT", 3600),
        ("Fri, 31 Dec 9999 23:59:59 -1200", 3600),
        ("Mon, 20 Nov 2026 12:00:00 +9999", None),
        ("Mon, 20 Nov 2026 12:00:00 -999999999999999999999", None),
        ("Mon, 01 Jan 0001 00:00:00 +1200", 0),
        ("Mon, 99 Nov 2026 99:99:99 GMT", None),
        ("-1e400", None),
        ("inf", None),
        ("nan", None),
        ("\x00", None),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("²", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, seconds: float | None) -> None:
    assert retry_after(value, NOW) == seconds


@pytest.mark.parametrize(
    "url",
    ["", "x", "ftp://host/", "http://", "http:///path", "http://h:99999/", "http://h/a b", "//h/"],
)
def test_a_url_that_cannot_be_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="not a URL"):
        check(url, {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("", "v"),
        ("a b", "v"),
        ("ce-id", "v"),
        ("Content-Type", "v"),
        ("X-A", "secret\r\nX-B: 1"),
        ("X-A", "sécret"),
    ],
)
def test_a_header_that_cannot_be_is_refused_without_showing_it(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check("https://example.com/", {name: value})
    assert "cret" not in str(refused.value)


def test_there_is_one_authorization_at_most() -> None:
    check("https://me:pw@example.com/", {"X-A": "b"})
    with pytest.raises(ConfigError, match="leave out the Authorization header"):
        check("https://me:pw@example.com/", {"authorization": "Bearer b"})


def test_what_a_url_hides_is_not_shown() -> None:
    assert shown("https://me:pw@example.com:8443/in?token=x#y") == "https://example.com:8443/in"


@pytest.mark.parametrize(
    "exc",
    [
        OSError(113, "No route to host"),
        ConnectionResetError(),
        TimeoutError(),
        socket.gaierror(-2, "Name or service not known"),
        *_TLS_ERRORS,
        BadResponse("not HTTP"),
        UnicodeError("label empty or too long"),
        asyncio.IncompleteReadError(b"", 1),
    ],
    ids=repr,
)
async def test_every_error_of_the_network_is_an_outcome_that_is_retried(exc: Exception) -> None:
    async with Webhook.open("http://user:secret@host/?key", headers={}, timeout=1.0) as webhook:

        async def fail(*_: object) -> NoReturn:
            raise exc

        webhook._exchange = fail  # type: ignore[method-assign,assignment]
        answer = await webhook.post(b"{}", {})
    assert answer.verdict is Outcome.AGAIN
    assert answer.reason
    assert "secret" not in answer.reason
