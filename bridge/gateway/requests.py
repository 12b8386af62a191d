"""Requests to the Boxes, repeated until one answers or the deadline passes.

A request is sent again every second until it is answered, so that a Box that froze with the first
copy does not matter. It carries an id or only reads, so that it has one effect however often it is
sent. The answer to any copy is valid, however late it comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Final, Protocol, TypeVar

from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.core.pending_request import PendingRequest
from bridge.errors import BusError, CutOff, NoReply, NoResponders
from bridge.gateway.errors import NoBoxError, RequestTimeout, ScaleError
from bridge.protocol import decode
from bridge.reply_codes import TRANSIENT, ReplyCode, code_of_sentence
from bridge.subjects import REPLY_CODE

_RECOVERY: Final = 10.0  # seconds after an outage in which Boxes may still be reconnecting
_RETRY: Final = 0.25  # seconds until a transient refusal, or a lack of Boxes, is retried


class Response(Protocol):
    """What each response has."""

    @property
    def error(self) -> str | None:
        """Why the Box refused; None if it did not."""


T = TypeVar("T", bound=Response)


class RetriedRequest:
    """A request to any Box, sent until `deadline` (in the loop's time).

    `limit` (seconds), `request_id` and whether it `changes` anything are for the error after the
    deadline.
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
        self.reply_headers: Mapping[str, str] = {}
        self._error: str | None = None
        self._subject = subject
        self._body = body
        self._deadline = deadline
        self._headers = headers
        self._timed_out = partial(RequestTimeout, subject, limit, request_id, changes=changes)

    @property
    def code(self) -> str | None:
        """The code of the last reply; None if it was no refusal, or had no code."""
        return self.reply_headers.get(REPLY_CODE) or code_of_sentence(self._error)

    async def response(self, connection: Connection, cls: type[T]) -> T:
        """The first response that is not a transient refusal, or the last one before the deadline.

        Raises NoBoxError, RequestTimeout (the outcome is unknown), CutOff, and ProtocolError if the
        payload of a reply is invalid.
        """
        request = connection.inquire(self._subject, self._body, headers=self._headers)
        try:
            return await self._response(connection, request, cls)
        finally:
            request.drop()

    async def _response(self, connection: Connection, request: PendingRequest, cls: type[T]) -> T:
        refusal: T | None = None
        while True:
            try:
                message = await self._reply(connection, request)
            except NoBoxError:
                if refusal is None:
                    raise
                return refusal  # the deadline has passed, or no Box is left
            self.reply_headers = message.headers
            refusal = response = decode(cls, message.data)
            self._error = response.error
            expired = self.code == ReplyCode.EXPIRED
            if not expired and self.code not in TRANSIENT:
                return response
            if expired or not await _pause(_RETRY, self._deadline):
                if request.unanswered:
                    raise self._timed_out()  # no Box checked whether an earlier copy had an effect
                return response

    async def _reply(self, connection: Connection, request: PendingRequest) -> Message:
        """The next reply to any copy. Raises NoBoxError, RequestTimeout and CutOff."""
        loop = asyncio.get_running_loop()
        while (left := self._deadline - loop.time()) > 0:
            try:
                return await request.answer_by(self._deadline)
            except NoReply:
                break
            except NoResponders as exc:
                # After an outage Boxes may reconnect a moment later than this client.
                if not request.unanswered and connection.back_for() > _RECOVERY:
                    raise NoBoxError(self._subject) from exc
                await asyncio.sleep(min(_RETRY, left))
            except CutOff:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(self._deadline):
                        await connection.wait_connected()
                if not (request.unanswered or connection.connected):
                    raise
        if not request.unanswered:
            raise NoBoxError(self._subject)
        raise self._timed_out()


def is_transient(exc: BusError | ScaleError) -> bool:
    """Whether a query that ended with `exc` may be answered if it is retried a moment later."""
    if isinstance(exc, CutOff | NoBoxError | RequestTimeout):
        return True
    return isinstance(exc, ScaleError) and exc.code in TRANSIENT


@contextlib.contextmanager
def outages_ignored() -> Iterator[None]:
    """Suppress transient errors in the block: for one of many queries about a change that was
    accepted, and that stands whether or not a Box answers.
    """
    try:
        yield
    except (BusError, ScaleError) as exc:
        if not is_transient(exc):
            raise


def new_request_id() -> str:
    """A new random request id."""
    return secrets.token_hex(8)


async def _pause(seconds: float, deadline: float) -> bool:
    """Sleep, unless the deadline would pass first. Returns whether it slept."""
    left = deadline - asyncio.get_running_loop().time()
    if left <= seconds:
        return False
    await asyncio.sleep(seconds)
    return True
