"""Subscriptions that outlast the client that made them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from bridge.bus.core.connect_errors import FOREIGN, describe
from bridge.bus.core.message import Handler
from bridge.bus.core.nats_client import GuardedClient
from bridge.errors import BusError

_DENIED_MIN: Final = 2.0  # seconds until a subscription that was refused is tried again
_DENIED_MAX: Final = 60.0  # seconds between such attempts, at most


class Listener:
    """A subscription of a Connection; `await close()` ends it.

    `denied` is set once the server refused it; `sid` is its id at the current client.
    """

    __slots__ = ("_close", "denied", "handler", "queue", "sid", "subject")

    def __init__(
        self, subject: str, queue: str, handler: Handler, close: Callable[[Listener], None]
    ) -> None:
        self.subject = subject
        self.queue = queue
        self.handler = handler
        self.sid = 0
        self.denied = False
        self._close = close

    async def close(self) -> None:
        """End the subscription; messages on their way are dropped."""
        self._close(self)


class Listeners:
    """The Listeners of a Connection. Each new client subscribes to their subjects again."""

    def __init__(self) -> None:
        self._all: set[Listener] = set()
        self._pause = _DENIED_MIN
        self._retry_at = 0.0

    def add(self, client: GuardedClient, listener: Listener) -> Listener:
        """Subscribe at `client` if it is connected. Raises BusError for a wrong subject."""
        if not client.is_closed:
            try:
                _subscribe(client, listener)
            except FOREIGN as exc:
                raise BusError(f"cannot listen on {listener.subject!r}: {describe(exc)}") from exc
        self._all.add(listener)
        return listener

    def remove(self, client: GuardedClient, listener: Listener) -> None:
        """End the subscription, if it has not ended yet."""
        if listener in self._all:
            self._all.discard(listener)
            if not client.is_closed:
                client.unlisten(listener.sid)

    def move_to(self, client: GuardedClient) -> None:
        """Subscribe to every subject at the new `client`."""
        for listener in self._all:
            _subscribe(client, listener)

    def deny(self, subject: str) -> None:
        """The server refused the subscriptions to `subject`."""
        for listener in self._all:
            listener.denied |= listener.subject == subject

    def retry_denied(self, client: GuardedClient) -> None:
        """Subscribe again where the server refused it: its permissions may have changed.

        A server that takes a permission away ends the subscriptions, and does not restore them. The
        pauses grow, because a user may lack a permission for good.
        """
        denied = [listener for listener in self._all if listener.denied]
        now = time.monotonic()
        if not denied:
            self._pause = _DENIED_MIN
            self._retry_at = now + self._pause
        elif now >= self._retry_at and not client.is_closed:
            self._pause = min(self._pause * 2, _DENIED_MAX)
            self._retry_at = now + self._pause
            for listener in denied:
                listener.denied = False  # until the server refuses it again
                client.unlisten(listener.sid)
                _subscribe(client, listener)


def _subscribe(client: GuardedClient, listener: Listener) -> None:
    listener.sid = client.listen(listener.subject, listener.handler, listener.queue)
