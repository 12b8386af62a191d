"""One HTTP endpoint that is handed requests, and what its answers mean.

Certificates are verified, redirects are not followed, and what is secret is never shown: the values
of the headers that the user gave, a password or a query in the URL.
"""

from __future__ import annotations

import contextlib
import enum
import re
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from msgspec import Struct

from bridge.errors import ConfigError

if TYPE_CHECKING:
    import aiohttp

_TRANSIENT_4XX: Final = (408, 425, 429)  # timeout, too early, too many: the request may be right
_MOST_WAIT: Final = 3600.0  # seconds of a Retry-After that are heeded
_READ: Final = 64 * 1024  # bytes of an answer that are read, so that its connection can be kept
_START: Final = 4096  # bytes of it that are looked at
_SAID: Final = 200  # letters of it that are told

_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, 5.6.2
_OURS: Final = ("content-type", "content-length", "transfer-encoding", "host", "connection")


class Outcome(enum.Enum):
    """What an answer means for the event that was sent."""

    TAKEN = "2xx: the receiver has it"
    AGAIN = "it may take it later"
    REFUSED = "it never will"


class WebhookResponse(Struct, frozen=True, kw_only=True):
    """What came of a request. `reason` is for people; `retry_after` is in seconds, None where the
    receiver named no time.
    """

    verdict: Outcome
    reason: str = ""
    retry_after: float | None = None


class Webhook:
    """Posts to one URL. Made by `Webhook.open`."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, headers: Mapping[str, str]
    ) -> None:
        self._session = session
        self._url = url
        self._secrets = sorted(filter(None, headers.values()), key=len, reverse=True)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, url: str, *, headers: Mapping[str, str], timeout: float, connections: int
    ) -> AsyncIterator[Webhook]:
        """Be able to post to `url` with these `headers`, `timeout` seconds for each request.

        Raises ConfigError for a URL or header that cannot be, and where aiohttp is not installed.
        """
        check(url, headers)
        try:
            import aiohttp
        except ImportError as exc:
            raise ConfigError("relay", "it needs aiohttp: pip install 'box-bridge[relay]'") from exc
        async with aiohttp.ClientSession(
            headers=dict(headers),
            timeout=aiohttp.ClientTimeout(total=timeout),
            connector=aiohttp.TCPConnector(limit=connections),
            cookie_jar=aiohttp.DummyCookieJar(),
        ) as session:
            yield cls(session, url, headers)

    async def post(self, body: bytes, headers: Mapping[str, str]) -> WebhookResponse:
        """Post once. Never raises for what a receiver or the network can do."""
        import aiohttp

        try:
            async with self._session.post(
                self._url, data=body, headers=headers, allow_redirects=False
            ) as response:
                said = ""
                # Whatever becomes of the body, the receiver has spoken.
                with contextlib.suppress(TimeoutError, aiohttp.ClientError):
                    said = self._without_secrets(await _said(response))[:_SAID]
                wait = retry_after(response.headers.get("Retry-After", ""), datetime.now(UTC))
                return judge(response.status, said, wait)
        except TimeoutError:
            return WebhookResponse(verdict=Outcome.AGAIN, reason="no answer in time")
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            return WebhookResponse(verdict=Outcome.AGAIN, reason=_told(exc))

    def _without_secrets(self, said: str) -> str:
        """A receiver may repeat what it was sent."""
        for secret in self._secrets:
            said = said.replace(secret, "***")
        return said


def judge(status: int, said: str = "", wait: float | None = None) -> WebhookResponse:
    """What an answer with this status means; `said` is the start of its body.

    A 4xx says that the request is wrong and would be wrong again, but for 408, 425 and 429. A
    redirect is not followed and may be mended at either end, so it is tried again.
    """
    reason = f"HTTP {status}" + (f": {said}" if said else "")
    if 200 <= status < 300:
        return WebhookResponse(verdict=Outcome.TAKEN)
    if 400 <= status < 500 and status not in _TRANSIENT_4XX:
        return WebhookResponse(verdict=Outcome.REFUSED, reason=reason)
    if 300 <= status < 400:
        reason = f"HTTP {status}: redirects are not followed; give the address that it leads to"
    return WebhookResponse(verdict=Outcome.AGAIN, reason=reason, retry_after=wait)


def retry_after(value: str, now: datetime) -> float | None:
    """The seconds that a Retry-After header asks for (RFC 9110, 10.2.3), an hour at most; None for
    one that says nothing.
    """
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(float(value[:9]), _MOST_WAIT)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return min(max((at - now).total_seconds(), 0.0), _MOST_WAIT)


def check(url: str, headers: Mapping[str, str]) -> None:
    """Raises ConfigError where they can make no request, without showing a header's value."""
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        right = False
    if not right or not url.isprintable() or " " in url:
        raise ConfigError("--to", "that is not a URL such as https://example.com/events")
    if "@" in urlsplit(url).netloc and "authorization" in map(str.lower, headers):
        raise ConfigError("--to", "it has a user already: leave out the Authorization header")
    for name, value in headers.items():
        if _TOKEN.fullmatch(name) is None:
            raise ConfigError("--header", f"{name!r} is not a header's name")
        if name.lower().startswith("ce-") or name.lower() in _OURS:
            raise ConfigError("--header", f"{name} is what the relay says itself")
        if any(c in value for c in "\r\n\0") or not value.isascii():
            raise ConfigError("--header", f"the value of {name} cannot be in a header")


def shown(url: str) -> str:
    """`url` without user, password and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


async def _said(response: aiohttp.ClientResponse) -> str:
    """The start of the body. Read to its end, where that is near, so that the connection lasts."""
    start = await response.content.read(_START)
    rest = 0
    while rest < _READ and (more := await response.content.read(_READ)):
        rest += len(more)
    text = start.decode(errors="replace")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _told(exc: Exception) -> str:
    """What went wrong, in words that hold no URL and no header."""
    cause = exc.os_error if hasattr(exc, "os_error") else exc
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.lower()
    return type(exc).__name__
