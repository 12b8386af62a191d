"""An endpoint: its subject, its handlers, and the replies that they make."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from msgspec import Struct, field

from bridge.bus.core.message import Message
from bridge.reply_codes import Refusal


class Reply(Struct, frozen=True, kw_only=True):
    """The payload and headers of a reply, and how the request ended.

    `outcome` is a word for the metrics; `error` is set if the request was refused.
    """

    data: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    outcome: str = "ok"
    error: str = ""


Handle = Callable[[Message], Awaitable[Reply | None]]
"""Answers a request. None sends no reply: the outcome is unknown, and the caller retries."""

Refuse = Callable[[Refusal], Reply]
"""The reply to a request that is refused before a handler reads it."""

Deferred = Callable[[], Awaitable[Reply | None]]
"""The rest of the work on a request, with the same result as `Handle`."""

AtOnce = Callable[[Message], Reply | Deferred]
"""Answers a request in the read loop if that takes no waiting, and else returns the rest of it."""


class Endpoint(Struct, frozen=True, kw_only=True):
    """One subject and its handlers. While no request waits, `at_once` is called first: an answer
    that takes no waiting then takes no queue and no switch of tasks either (a tenth of its time).
    What it defers waits in the queue like any request. A service works without an `optional` one.
    """

    name: str
    subject: str
    queue: str
    handle: Handle
    refuse: Refuse
    at_once: AtOnce | None = None
    optional: bool = False
