"""A subscription that outlasts the client that made it."""

from __future__ import annotations

from collections.abc import Callable

from bridge.bus.core.message import Handler


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
