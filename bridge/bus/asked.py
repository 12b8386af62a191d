"""A request that was sent, and its one answer."""

from __future__ import annotations

import asyncio
from typing import Final

from bridge.bus.message import Message
from bridge.errors import NoReply, NoResponders

_NO_RESPONDERS: Final = 503


class Asked:
    """Waits in `waiting` under its `token` until it was answered, or `timeout` seconds are over."""

    __slots__ = ("_expiry", "_future", "_timeout", "_token", "_waiting", "subject")

    def __init__(self, waiting: dict[str, Asked], token: str, subject: str, timeout: float) -> None:
        loop = asyncio.get_running_loop()
        self.subject = subject
        self._waiting = waiting
        self._token = token
        self._timeout = timeout
        self._future: asyncio.Future[Message] = loop.create_future()
        self._expiry = loop.call_later(timeout, self.fail, TimeoutError())
        waiting[token] = self

    async def answer(self) -> Message:
        """The answer. Raises NoResponders and NotPermitted (nothing was done), NoReply (the outcome
        is unknown).
        """
        try:
            message = await self._future
        except TimeoutError as exc:
            raise NoReply(self.subject, self._timeout) from exc
        finally:
            self.drop()
        if not message.data and message.status == _NO_RESPONDERS:
            raise NoResponders(self.subject)
        return message

    def drop(self) -> None:
        """Nobody waits any more."""
        self._expiry.cancel()
        self._waiting.pop(self._token, None)
        self._future.cancel()

    def take(self, message: Message) -> None:
        """The answer is there; what comes after the first is nobody's."""
        if not self._future.done():
            self._future.set_result(message)

    def fail(self, error: Exception) -> None:
        """There will be none."""
        if not self._future.done():
            self._future.set_exception(error)
