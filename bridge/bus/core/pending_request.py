"""A request that is sent once or in several copies, and the answers to it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from bridge.bus.core.message import Message
from bridge.errors import NoReply, NoResponders

_NO_RESPONDERS: Final = 503
_RESEND: Final = 1.0  # seconds until an unanswered request is sent again


class PendingRequest:
    """Collects the answers in `waiting` under its `token` until it is dropped.

    `publish` sends one copy; `timeout` is the default for an answer, in seconds after `send`. The
    request is `unanswered` if `answer_by` sent a copy and got no answer to it in time.
    """

    __slots__ = (
        "_answers",
        "_deadline",
        "_error",
        "_publish",
        "_timeout",
        "_token",
        "_waiter",
        "_waiting",
        "subject",
        "unanswered",
    )

    def __init__(
        self,
        waiting: dict[str, PendingRequest],
        token: str,
        subject: str,
        publish: Callable[[], None],
        timeout: float,
    ) -> None:
        self.subject = subject
        self.unanswered = False
        self._waiting = waiting
        self._token = token
        self._publish = publish
        self._timeout = timeout
        self._deadline = 0.0
        self._answers: deque[Message] = deque()
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        waiting[token] = self

    def send(self) -> None:
        """Send one copy. Raises CutOff and BusError, as `Connection.publish` does."""
        self._error = None
        self._deadline = asyncio.get_running_loop().time() + self._timeout
        self._publish()

    async def answer(self, within: float | None = None) -> Message:
        """The next answer to any copy, `within` seconds from now.

        Raises NoReply (the outcome is unknown), NoResponders and NotPermitted (nothing was done).
        """
        if not self._answers and self._error is None:
            loop = asyncio.get_running_loop()
            left = self._deadline - loop.time() if within is None else within
            self._waiter = loop.create_future()
            expiry = loop.call_later(left, self.fail, TimeoutError())
            try:
                await self._waiter
            finally:
                expiry.cancel()
        if not self._answers:
            assert self._error is not None
            if isinstance(self._error, TimeoutError):
                seconds = self._timeout if within is None else within
                raise NoReply(self.subject, seconds, str(self._error)) from self._error
            raise self._error
        message = self._answers.popleft()
        if not message.data and message.status == _NO_RESPONDERS:
            raise NoResponders(self.subject)
        return message

    async def answer_by(self, deadline: float) -> Message:
        """The next answer to any copy. A copy is sent now, and one each second until `deadline`, in
        the loop's time.

        Raises NoReply at the deadline (the outcome is unknown), CutOff if a copy could not be sent
        (earlier ones may be `unanswered`), NoResponders and NotPermitted.
        """
        loop = asyncio.get_running_loop()
        while True:
            self.send()
            try:
                return await self.answer(min(_RESEND, deadline - loop.time()))
            except NoReply:
                self.unanswered = True
                if loop.time() >= deadline:
                    raise

    def drop(self) -> None:
        """Take no more answers."""
        self._waiting.pop(self._token, None)

    def take(self, message: Message) -> None:
        """Take an answer."""
        self._answers.append(message)
        self._wake()

    def fail(self, error: Exception) -> None:
        """End the wait for an answer to what was sent so far. A TimeoutError becomes NoReply."""
        self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
