"""Publishing what must not be lost: again and again, until it is stored, and stored once.

A repeat is harmless while the stream remembers the message's ``Nats-Msg-Id``: it keeps the first
and acknowledges the others. What may have been stored longer ago than half that memory is looked
up in the stream before it is sent again.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

import stamina

from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.jetstream import replay
from bridge.bus.jetstream.publish import OutgoingMessage, store_batch, store_each
from bridge.bus.jetstream.topology import has_atomic_batches
from bridge.errors import BusError, CutOff, NoResponders, StoreRefused
from bridge.subjects import MSG_ID

_log = logging.getLogger(__name__)

LIMIT: Final = 1000  # messages in one atomic batch (nats-server)

_IN_FLIGHT: Final = 16  # single messages at once (NATS-FACTS: a batch pays from 10 on)
_BATCH_FROM: Final = 10
_TIMEOUT: Final = 5.0  # seconds until a silent publish is repeated


class Publisher:
    """See the module. Publishes into `stream`, which remembers ids for `window` seconds.

    `restore` is awaited when no stream takes a subject any more, and before a look into it.
    """

    def __init__(
        self,
        connection: Connection,
        stream: str,
        window: float,
        clock: Callable[[], datetime],
        restore: Callable[[], Awaitable[object]],
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._window = timedelta(seconds=window)
        self._clock = clock
        self._restore = restore

    async def publish(self, messages: Sequence[OutgoingMessage], *, doubtful: bool = False) -> None:
        """Return when up to 1,000 messages are stored, however long that takes.

        `doubtful` says that they may have been sent before, as by a process that was killed.
        Messages with the same key are stored in their order. Only cancellation ends it early;
        which of them were stored is then unknown.
        """
        if self._connection.connected and not doubtful:
            # Nearly always it works, and the machinery of trying again costs a tenth of the time
            # that a lone event takes.
            with contextlib.suppress(BusError):  # `_try` has told of it
                await self._try(messages)
                return
            doubtful = True
        async for attempt in stamina.retry_context(
            on=BusError, attempts=None, timeout=None, wait_initial=0.1, wait_max=5.0
        ):
            with attempt:
                await self._connection.wait_connected()
                if doubtful:
                    messages = await self._unstored(messages)
                doubtful = True  # whatever becomes of it now
                await self._try(messages)

    async def _try(self, messages: Sequence[OutgoingMessage]) -> None:
        """Store `messages`; after an unknown outcome the same ones must be tried again."""
        try:
            if len(messages) < _BATCH_FROM or not has_atomic_batches(self._connection):
                await self._one_by_one(messages)
                return
            try:
                await store_batch(self._connection, messages, timeout=_TIMEOUT)
            except StoreRefused as exc:
                # Some were stored before (10201), or the server is out of batches: one by one
                # each answers for itself.
                _log.debug("batch of %d refused: %s", len(messages), exc)
                self._connection.metrics.count("batch_refused")
                await self._one_by_one(messages)
        except NoResponders:
            await self._restore()
            raise
        except CutOff:
            raise
        except BusError as exc:
            self._connection.metrics.count("publish_retry")
            _log.warning("storing in %s failed, trying again: %s", self._stream, exc)
            raise

    async def _one_by_one(self, messages: Iterable[OutgoingMessage]) -> None:
        """The first of each key side by side, then the second of each: none overtakes one that
        failed.
        """
        for turn in _in_turns(messages):
            for first in range(0, len(turn), _IN_FLIGHT):
                part = turn[first : first + _IN_FLIGHT]
                await store_each(self._connection, part, timeout=_TIMEOUT)

    async def _unstored(self, messages: Sequence[OutgoingMessage]) -> Sequence[OutgoingMessage]:
        """`messages` without those that are so old that their id may be forgotten, and that the
        stream holds. A message from the future was made by a clock that was set back since.
        """
        now = self._clock()
        old = {
            message.headers[MSG_ID]: message.subject
            for message in messages
            if not now - self._window / 2 < message.at <= now
        }
        if not old:
            return messages
        await self._restore()  # nothing can be looked up in a stream that is gone
        found: set[str] = set()

        def take(message: Message) -> None:
            if (name := message.headers.get(MSG_ID, "")) in old:
                found.add(name)

        for subject in set(old.values()):
            await replay.read(self._connection, self._stream, subject, take)
        if found:
            _log.info("%d events had been stored before the outage", len(found))
        return [message for message in messages if message.headers[MSG_ID] not in found]


def _in_turns(messages: Iterable[OutgoingMessage]) -> Iterable[list[OutgoingMessage]]:
    """`messages` in lists that hold each key once at most, and each key's in their order."""
    turns: list[list[OutgoingMessage]] = []
    turn_of: dict[str, int] = {}
    for message in messages:
        number = turn_of[message.key] = turn_of.get(message.key, -1) + 1
        if number == len(turns):
            turns.append([])
        turns[number].append(message)
    return turns
