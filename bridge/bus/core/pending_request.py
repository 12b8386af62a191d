"""A request that was sent, and its one answer; and one that is sent again and again."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from bridge.bus.core.message import Message
from bridge.errors import NoReply, NoResponders

_NO_RESPONDERS: Final = 503


class PendingRequest:
    """Waits in `waiting` under its `token` until it was answered, or `timeout` seconds are over."""

    __slots__ = ("_expiry", "_future", "_timeout", "_token", "_waiting", "subject")

    def __init__(
        self,
        waiting: dict[str, PendingRequest | RepeatedRequest],
        token: str,
        subject: str,
        timeout: float,
    ) -> None:
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
        return _heeded(self.subject, message)

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


class RepeatedRequest:
    """A request that is sent in several copies, and the answers to any of them, in `waiting` under
    its `token` until it is dropped. `send` publishes one more copy.
    """

    __slots__ = ("_answers", "_token", "_waiter", "_waiting", "send", "subject")

    def __init__(
        self,
        waiting: dict[str, PendingRequest | RepeatedRequest],
        token: str,
        subject: str,
        send: Callable[[], None],
    ) -> None:
        self.subject = subject
        self.send = send
        self._waiting = waiting
        self._token = token
        self._answers: deque[Message] = deque()
        self._waiter: asyncio.Future[None] | None = None
        waiting[token] = self

    async def answer(self, within: float) -> Message:
        """The next answer to any copy. Raises NoReply when there is none `within` so many seconds,
        NoResponders when nobody was there for a copy, NotPermitted.
        """
        if not self._answers:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            expiry = loop.call_later(within, self.fail, TimeoutError())
            try:
                await self._waiter
            except TimeoutError as exc:
                if not self._answers:
                    raise NoReply(self.subject, within) from exc
            finally:
                expiry.cancel()
        return _heeded(self.subject, self._answers.popleft())

    def drop(self) -> None:
        """Nobody waits any more."""
        self._waiting.pop(self._token, None)

    def take(self, message: Message) -> None:
        """One more answer is there."""
        self._answers.append(message)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, error: Exception) -> None:
        """Whoever waits now waits in vain."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)


def _heeded(subject: str, message: Message) -> Message:
    """The message, unless it is the server's that nobody was there."""
    if not message.data and message.status == _NO_RESPONDERS:
        raise NoResponders(subject)
    return message
