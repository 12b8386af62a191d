"""One HTTP endpoint: sends requests and judges the answers.

Certificates are verified and redirects are not followed. Secrets are never shown: the values of the
configured headers, and a password or query in the URL.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import enum
import ssl
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import quote, unquote, urlsplit

from msgspec import Struct

from bridge.errors import ConfigError
from bridge.http_exchange import HEADER_NAME, BadResponse, Channel, Response, failure
from bridge.printable import printable
from bridge.version import VERSION

_TRANSIENT_4XX: Final = (408, 425, 429)  # timeout, too early, too many: the request may be right
_MAX_WAIT: Final = 3600.0  # seconds of a Retry-After, at most
_START: Final = 4096  # bytes of a response's body that are read
_MAX_TEXT: Final = 200  # letters of it that are shown
_IDLE: Final = 15.0  # seconds for which an idle connection may be reused

_IN_TARGET: Final = "".join(map(chr, range(0x21, 0x7F)))  # valid in a request line
_OWN_HEADERS: Final = ("content-type", "content-length", "transfer-encoding", "host", "connection")


class Outcome(enum.Enum):
    """The meaning of an answer for the event that was sent."""

    TAKEN = "2xx: the receiver has the event"
    AGAIN = "the receiver may accept it later"
    REFUSED = "the receiver will never accept it"


class WebhookResponse(Struct, frozen=True, kw_only=True):
    """The outcome of a request. `reason` is a short message; `retry_after` is in seconds, None if
    the receiver named no time.
    """

    verdict: Outcome
    reason: str = ""
    retry_after: float | None = None


class Webhook:
    """Posts to one URL. Made by `Webhook.open`."""

    def __init__(self, url: str, headers: Mapping[str, str], timeout: float) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        host = f"[{self._host}]" if ":" in self._host else self._host
        self._where = f"{host}:{self._port}"
        self._timeout = timeout
        self._start = _request_start(url, headers)
        hidden = {*headers.values(), parts.query, *_passwords(parts.netloc)} - {""}
        self._secrets = sorted(hidden, key=len, reverse=True)
        self._idle: list[tuple[Channel, float]] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, url: str, *, headers: Mapping[str, str], timeout: float
    ) -> AsyncIterator[Webhook]:
        """A webhook for `url` that sends these `headers`, with `timeout` seconds for each request.

        Raises ConfigError for an invalid URL or header.
        """
        check(url, headers)
        webhook = cls(url, headers, timeout)
        try:
            yield webhook
        finally:
            for channel, _ in webhook._idle:
                channel.close()

    async def post(self, body: bytes, headers: Mapping[str, str]) -> WebhookResponse:
        """Post once. A failure of the receiver or the network is an outcome, not an exception."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        length = f"Content-Length: {len(body)}\r\n\r\n"
        try:
            response = await self._exchange(
                self._start + lines.encode() + length.encode() + body,
                asyncio.get_running_loop().time() + self._timeout,
            )
            text = self._without_secrets(_text(response))[:_MAX_TEXT]
            wait = retry_after(response.headers.get("retry-after", ""), datetime.now(UTC))
            return judge(response.status, text, wait)
        except TimeoutError:
            return WebhookResponse(
                verdict=Outcome.AGAIN, reason=f"no answer within {self._timeout:g} s"
            )
        except Exception as exc:  # TLS and the resolver raise many kinds
            reason = self._without_secrets(failure(exc, self._where))
            return WebhookResponse(verdict=Outcome.AGAIN, reason=reason)

    async def _exchange(self, request: bytes, deadline: float) -> Response:
        """Send on an idle connection, or on a new one. If the receiver has closed an idle one
        meanwhile, the request is sent once more.
        """
        loop = asyncio.get_running_loop()
        while self._idle:
            channel, since = self._idle.pop()
            if not channel.reusable or loop.time() - since > _IDLE:
                channel.close()
                continue
            try:
                return await self._send(channel, request, deadline)
            except (ConnectionError, BadResponse):
                if not channel.silent:
                    raise
        channel = await Channel.open(self._host, self._port, deadline=deadline, tls=self._tls)
        return await self._send(channel, request, deadline)

    async def _send(self, channel: Channel, request: bytes, deadline: float) -> Response:
        try:
            response = await channel.send(request, deadline=deadline, body=_START)
        except BaseException:
            channel.close()
            raise
        if channel.reusable:
            self._idle.append((channel, asyncio.get_running_loop().time()))
        else:
            channel.close()
        return response

    def _without_secrets(self, text: str) -> str:
        """`text` without secrets: a receiver may repeat what it was sent."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def judge(status: int, text: str = "", wait: float | None = None) -> WebhookResponse:
    """The outcome for an answer with this status; `text` is the start of its body.

    A 4xx means that the request is wrong and would be refused again, except for 408, 425 and 429. A
    redirect is not followed; it is retried, as the operator of either end may fix it.
    """
    reason = f"HTTP {status}" + (f": {text}" if text else "")
    if 200 <= status < 300:
        return WebhookResponse(verdict=Outcome.TAKEN)
    if 400 <= status < 500 and status not in _TRANSIENT_4XX:
        return WebhookResponse(verdict=Outcome.REFUSED, reason=reason)
    if 300 <= status < 400:
        reason = f"HTTP {status}: redirects are not followed; configure the target of the redirect"
    return WebhookResponse(verdict=Outcome.AGAIN, reason=reason, retry_after=wait)


def retry_after(value: str, now: datetime) -> float | None:
    """The seconds of a Retry-After header (RFC 9110, 10.2.3), an hour at most; None if it is
    missing or invalid.
    """
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(float(value.lstrip("0")[:9] or 0), _MAX_WAIT)
    try:
        at = parsedate_to_datetime(value)
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
        return min(max((at - now).total_seconds(), 0.0), _MAX_WAIT)
    except Exception:  # no date, or one that no clock can hold: the parser fails in many ways
        return None


def check(url: str, headers: Mapping[str, str]) -> None:
    """Raises ConfigError for an invalid URL or header, without showing a header's value."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        _ascii_host(parts.netloc.rpartition("@")[2])
    except ValueError:  # UnicodeError is one
        valid = False
    if not valid or not url.isprintable() or " " in url:
        raise ConfigError("--to", "is not a URL such as https://example.com/events")
    if "@" in urlsplit(url).netloc and "authorization" in map(str.lower, headers):
        raise ConfigError("--to", "the URL has a user already: leave out the Authorization header")
    for name, value in headers.items():
        if HEADER_NAME.fullmatch(name) is None:
            raise ConfigError("--header", f"{name!r} is not a valid header name")
        if name.lower().startswith("ce-") or name.lower() in _OWN_HEADERS:
            raise ConfigError("--header", f"the relay sets {name} itself")
        if any(c in value for c in "\r\n\0") or not value.isascii():
            raise ConfigError("--header", f"the value of {name} is not valid in a header")


def shown(url: str) -> str:
    """`url` without user, password and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _request_start(url: str, headers: Mapping[str, str]) -> bytes:
    """The request line and the headers of every request. The target is sent as configured; only
    characters that are invalid in a URL are encoded.
    """
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    after = url.partition("//")[2].partition("#")[0].removeprefix(parts.netloc)
    target = after if after.startswith("/") else f"/{after}"
    lines = [f"POST {quote(target, safe=_IN_TARGET)} HTTP/1.1", f"Host: {_ascii_host(host)}"]
    defaults = {"User-Agent": f"box-bridge/{VERSION}", "Accept-Encoding": "identity"}
    if at:
        defaults["Authorization"] = f"Basic {_basic(user)}"
    given = {name.lower() for name in headers}
    both = {name: value for name, value in defaults.items() if name.lower() not in given}
    lines += [f"{name}: {value}" for name, value in (both | dict(headers)).items()]
    return ("\r\n".join(lines) + "\r\n").encode()


def _basic(user: str) -> str:
    """The token of HTTP Basic for ``user:password`` in a URL."""
    name, _, password = user.partition(":")
    return base64.b64encode(f"{unquote(name)}:{unquote(password)}".encode()).decode()


def _passwords(netloc: str) -> set[str]:
    """The password in a URL, in each form that a receiver may repeat."""
    user, at, _ = netloc.rpartition("@")
    password = user.partition(":")[2]
    return {password, unquote(password), _basic(user)} if at else set()


def _ascii_host(host: str) -> str:
    return host if host.isascii() else host.encode("idna").decode()


def _text(response: Response) -> str:
    """The start of the body as one line; empty for a compressed body."""
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        return ""
    text = response.body.decode(errors="replace")
    return " ".join(printable(text).split())
