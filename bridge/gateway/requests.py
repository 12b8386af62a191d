"""Asking the Boxes: again and again until one answers, or the time is over.

A request is sent again every second until it is answered, so that a Box that froze with the first
one does not matter. It carries an id or asks for a state, so that it has one effect however often
it is sent, and the answer to any of its copies is as good: a slow one still counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Iterator, Mapping
from typing import Final, TypeVar

from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.core.pending_request import PendingRequest
from bridge.errors import BusError, CutOff, NoReply, NoResponders
from bridge.gateway.errors import NoBoxError, RequestTimeout, ScaleError
from bridge.protocol import decode
from bridge.reply_codes import TRANSIENT, ReplyCode
from bridge.subjects import REPLY_CODE

RESEND: Final = 1.0  # seconds until an unanswered request is sent again
_COMEBACK: Final = 10.0  # seconds after an outage in which Boxes may not be back yet
_AGAIN_AFTER: Final = 0.25  # seconds before asking those again who could not answer

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
        self.reply_headers: Mapping[str, str] = {}
        self._limit = limit
        self._request_id = request_id
        self._changes = changes

    @property
    def code(self) -> str | None:
        """The code of the last reply; None if it was no refusal."""
        return self.reply_headers.get(REPLY_CODE)

    async def answered(self, connection: Connection, cls: type[T]) -> T:
        """The first answer that is not a transient refusal, or the last one before the deadline.

        Raises NoBoxError, RequestTimeout (the outcome is unknown), CutOff, and ProtocolError if the
        payload of a reply is invalid.
        """
        inquiry = connection.inquire(self.subject, self.body, headers=self.headers)
        try:
            return await self._answered(connection, inquiry, cls)
        finally:
            inquiry.drop()

    async def _answered(self, connection: Connection, inquiry: PendingRequest, cls: type[T]) -> T:
        refusal: T | None = None
        while True:
            try:
                message = await self._ask(connection, inquiry)
            except NoBoxError:
                if refusal is None:
                    raise
                return refusal  # there was no time left to ask again, or nobody any more
            self.reply_headers = message.headers
            refusal = response = decode(cls, message.data)
            expired = self.code == ReplyCode.EXPIRED
            if not expired and self.code not in TRANSIENT:
                return response
            if expired or not await _pause(_AGAIN_AFTER, self.deadline):
                if self.unanswered:
                    raise self.timed_out()  # no Box looked whether the first had an effect
                return response

    async def _ask(self, connection: Connection, inquiry: PendingRequest) -> Message:
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
    return isinstance(exc, ScaleError) and exc.code in TRANSIENT


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
