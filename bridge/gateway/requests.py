"""Asking the Boxes: again and again until one answers, or the time is over.

A request is sent again every second until it is answered, so that a Box that froze with the first
one does not matter. It carries an id or asks for a state, so that it has one effect however often
it is sent, and the answer to any of its copies is as good: a slow one still counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Iterator, Mapping
from typing import Final, TypeVar

from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.core.pending_request import RepeatedRequest
from bridge.errors import BusError, CutOff, NoReply, NoResponders
from bridge.gateway.errors import NoBoxError, RequestTimeout, ScaleError
from bridge.protocol import decode

RESEND: Final = 1.0  # seconds until an unanswered request is sent again
_COMEBACK: Final = 10.0  # seconds after an outage in which Boxes may not be back yet
_AGAIN_AFTER: Final = 0.25  # seconds before asking those again who could not answer
_AGAIN: Final = ("Busy", "not ready")  # refusals that another moment, or another Box, may lift
_EXPIRED: Final = ("request: expired", "expired")  # what a Box says of what came too late

T = TypeVar("T")


class RetriedRequest:
    """What is asked, until when, and whether it was sent `unanswered`: with unknown effect.

    `deadline` is in the loop's time; `limit`, `request_id` and whether it `changes` anything are
    for the error once it has passed.
    """

    def __init__(
        self,
        subject: str,
        body: bytes,
        deadline: float,
        limit: float,
        headers: dict[str, str] | None = None,
        request_id: str = "",
        *,
        changes: bool = True,
    ) -> None:
        self.subject = subject
        self.body = body
        self.deadline = deadline
        self.headers = headers
        self.unanswered = False
        self.told: Mapping[str, str] = {}  # the headers of the last answer
        self._limit = limit
        self._request_id = request_id
        self._changes = changes

    async def answered(
        self, connection: Connection, cls: type[T], error: Callable[[T], str | None]
    ) -> T:
        """The first answer that is no passing refusal, or the last there was time for.

        `error` gives the reason of a refusal. Raises NoBoxError, RequestTimeout (the outcome is
        unknown), CutOff, and ProtocolError for what is no answer.
        """
        inquiry = connection.inquire(self.subject, self.body, headers=self.headers)
        try:
            return await self._answered(connection, inquiry, cls, error)
        finally:
            inquiry.drop()

    async def _answered(
        self,
        connection: Connection,
        inquiry: RepeatedRequest,
        cls: type[T],
        error: Callable[[T], str | None],
    ) -> T:
        refusal: T | None = None
        while True:
            try:
                message = await self._ask(connection, inquiry)
            except NoBoxError:
                if refusal is None:
                    raise
                return refusal  # there was no time left to ask again, or nobody any more
            self.told = message.headers
            refusal = response = decode(cls, message.data)
            why = error(response) or ""
            if not why.startswith((*_AGAIN, *_EXPIRED)):
                return response
            if why.startswith(_EXPIRED) or not await _pause(_AGAIN_AFTER, self.deadline):
                if self.unanswered:
                    raise self.timed_out()  # no Box looked whether the first had an effect
                return response

    async def _ask(self, connection: Connection, inquiry: RepeatedRequest) -> Message:
        """The next answer, asked for every second until the deadline."""
        loop = asyncio.get_running_loop()
        while (left := self.deadline - loop.time()) > 0:
            try:
                inquiry.send()
                return await inquiry.answer(min(RESEND, left))
            except NoReply:
                self.unanswered = True
            except NoResponders as exc:
                # After an outage Boxes come back a moment later than this client may.
                if not self.unanswered and connection.back_for() > _COMEBACK:
                    raise NoBoxError(self.subject) from exc
                await asyncio.sleep(min(_AGAIN_AFTER, left))
            except CutOff:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(self.deadline):
                        await connection.wait_connected()
                if not (self.unanswered or connection.connected):
                    raise
        if not self.unanswered:
            raise NoBoxError(self.subject)
        raise self.timed_out()

    def timed_out(self) -> RequestTimeout:
        """The error for a question that was asked and not answered."""
        return RequestTimeout(self.subject, self._limit, self._request_id, changes=self._changes)


def passes(exc: BusError | ScaleError) -> bool:
    """Whether a question that ended so may well be answered if it is asked again in a moment."""
    if isinstance(exc, CutOff | NoBoxError | RequestTimeout):
        return True
    return isinstance(exc, ScaleError) and str(exc).startswith(_AGAIN)


@contextlib.contextmanager
def outages_passed() -> Iterator[None]:
    """Nothing, if it ends with an error that `passes`: for one of many looks at what was taken, and
    stands whether anybody answers or not.
    """
    try:
        yield
    except (BusError, ScaleError) as exc:
        if not passes(exc):
            raise


def new_request_id() -> str:
    """An id that no other request has."""
    return secrets.token_hex(8)


async def _pause(seconds: float, deadline: float) -> bool:
    """Wait, unless the deadline comes first; whether it does not."""
    left = deadline - asyncio.get_running_loop().time()
    if left <= seconds:
        return False
    await asyncio.sleep(seconds)
    return True
