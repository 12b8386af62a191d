"""Publishing messages that must not be lost: each is retried until it is stored exactly once.

A retry is harmless while the stream remembers the message's ``Nats-Msg-Id``: it keeps the first
copy and acknowledges the others. A message that may have been stored before, and is older than half
of that window, is looked up in the stream before it is sent again.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

import stamina

from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.jetstream import replay
from bridge.bus.jetstream.api import jetstream, jetstream_errors
from bridge.bus.jetstream.publish import (
    OutgoingMessage,
    is_about_subject,
    is_permanent,
    store,
    store_batch,
    store_each,
)
from bridge.bus.jetstream.topology import has_atomic_batches, stream_info
from bridge.errors import (
    BusError,
    CutOff,
    InvalidMessage,
    NoResponders,
    NotPermitted,
    StoreRefused,
    TooLarge,
)
from bridge.log_limit import LimitedLog, cause_of
from bridge.subjects import MSG_ID

_log = logging.getLogger(__name__)

OnRefusal = Callable[[OutgoingMessage, BusError], None]
"""Called with a message that can never be stored, or not now, and why; again if the others are
retried.
"""

LIMIT: Final = 1000  # messages in one atomic batch (nats-server)

_IN_FLIGHT: Final = 16  # single messages at once
_BATCH_FROM: Final = 10  # messages from which on a batch is faster than single ones
_TIMEOUT: Final = 5.0  # seconds until an unacknowledged publish is retried


class Publisher:
    """See the module. Publishes into `stream`, which remembers ids for `window` seconds. `problem`
    is why the last attempt failed, "" after a success.

    `restore` creates the stream if it is gone: it is awaited when no stream takes a subject any
    more, and before messages are looked up.
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
        self._log = LimitedLog(_log)
        self._secret = secrets.token_bytes(16)
        self.problem = ""

    async def publish(
        self,
        messages: Sequence[OutgoingMessage],
        *,
        doubtful: bool = False,
        on_refusal: OnRefusal | None = None,
        on_hold: OnRefusal | None = None,
    ) -> None:
        """Return when up to 1,000 messages are stored, however long that takes.

        A message that can never be stored is given to `on_refusal` and delays no other; without
        that it is retried for ever. A message whose subject is refused for now is given to
        `on_hold`, with all later ones of that subject; without that they delay the others.

        `doubtful` means that they may have been sent before, by a process that was killed. Messages
        with the same key are stored in their order. Only cancellation ends it early; which of them
        were stored is then unknown.
        """
        if self._connection.connected and not doubtful:
            # The first attempt nearly always succeeds, and the retry loop would add a tenth to the
            # time of a single event.
            with contextlib.suppress(BusError):  # `_try` has logged it
                await self._try(messages, on_refusal, on_hold)
                return
            doubtful = True
        async for attempt in stamina.retry_context(
            on=BusError, attempts=None, timeout=None, wait_initial=0.1, wait_max=5.0
        ):
            with attempt:
                await self._connection.wait_connected()
                if doubtful:
                    messages = await self._unstored(messages)
                doubtful = True  # from here on the outcome may be unknown
                await self._try(messages, on_refusal, on_hold)

    async def _try(
        self,
        messages: Sequence[OutgoingMessage],
        on_refusal: OnRefusal | None,
        on_hold: OnRefusal | None,
    ) -> None:
        """Store `messages`. After an unknown outcome the same ones must be retried."""
        try:
            await self._store(messages, on_refusal, on_hold)
            self.problem = ""
        except NoResponders:
            await self._restore()
            raise
        except CutOff:
            raise
        except BusError as exc:
            self._connection.metrics.count("publish_retry")
            self._log.report(cause_of(exc), "storing in %s failed, retrying: %s", self._stream, exc)
            self.problem = str(exc)
            raise

    async def _store(
        self,
        messages: Sequence[OutgoingMessage],
        on_refusal: OnRefusal | None,
        on_hold: OnRefusal | None,
    ) -> None:
        if len(messages) < _BATCH_FROM or not has_atomic_batches(self._connection):
            await self._one_by_one(messages, on_refusal, on_hold)
            return
        try:
            await store_batch(self._connection, messages, timeout=_TIMEOUT)
        except (StoreRefused, NotPermitted, TooLarge, InvalidMessage) as exc:
            # Some were stored before (10201), one can never be stored, or not now, or the server
            # has no batch left: sent one by one, each message gets its own answer.
            _log.debug("batch of %d refused: %s", len(messages), exc)
            self._connection.metrics.count("batch_refused")
            await self._one_by_one(messages, on_refusal, on_hold)

    async def _one_by_one(
        self,
        messages: Iterable[OutgoingMessage],
        on_refusal: OnRefusal | None,
        on_hold: OnRefusal | None,
    ) -> None:
        """Store the first message of each key concurrently, then the second of each, and so on: no
        message overtakes an earlier one of its key that failed, unless that can never be stored.
        """
        held: dict[str, BusError] = {}  # the subjects that are refused for now
        for turn in _in_turns(messages):
            for first in range(0, len(turn), _IN_FLIGHT):
                part: list[OutgoingMessage] = []
                for message in turn[first : first + _IN_FLIGHT]:
                    if on_hold is not None and message.subject in held:
                        on_hold(message, held[message.subject])
                    else:
                        part.append(message)
                passing: list[BusError] = []
                outcomes = await store_each(self._connection, part, timeout=_TIMEOUT)
                await self._keep(outcomes.duplicates)
                for message, exc in outcomes.failures:
                    if on_refusal is not None and is_permanent(exc):
                        on_refusal(message, exc)
                    elif on_hold is not None and is_about_subject(exc):
                        held[message.subject] = exc
                        on_hold(message, exc)
                    else:
                        passing.append(exc)
                if passing:
                    raise passing[0]

    async def _keep(self, duplicates: Iterable[tuple[OutgoingMessage, int]]) -> None:
        """Store those messages whose id another message has at the sequence beside it."""
        for message, seq in duplicates:
            if not await self._is_stored(message, seq):
                await self._store_under_other_id(message)

    async def _is_stored(self, message: OutgoingMessage, seq: int) -> bool:
        """Whether the stream has `message` at `seq`, where its id is. It counts as stored if that
        cannot be read, as where the user lacks the right.
        """
        try:
            with jetstream_errors(self._stream):
                found = await jetstream(self._connection).get_msg(self._stream, seq)
        except (NotPermitted, StoreRefused):
            return True
        return (found.subject, found.data or b"") == (message.subject, message.data)

    async def _store_under_other_id(self, message: OutgoingMessage) -> None:
        """Store `message`, whose id another message has, which this process did not send. A retry
        has the same other id.
        """
        name = message.headers[MSG_ID]
        tag = hashlib.blake2s(name.encode(), key=self._secret, digest_size=8).hexdigest()
        headers = {**message.headers, MSG_ID: f"{name}.{tag}"}
        await store(
            self._connection, message.subject, message.data, headers=headers, timeout=_TIMEOUT
        )
        self._connection.metrics.refuse("store", "message id taken")
        self._log.report(
            "id taken",
            "another program has stored a message with the id %s: check who may publish on %s",
            name,
            message.subject,
            level=logging.ERROR,
        )

    async def _unstored(self, messages: Sequence[OutgoingMessage]) -> Sequence[OutgoingMessage]:
        """`messages` without those that the stream holds and whose id it may have forgotten.

        A message from the future was made before this host's clock was set back: it counts as old.
        """
        now, info = self._clock(), await stream_info(self._connection, self._stream)
        window = self._window
        if info is None:
            await self._restore()
        elif (seconds := info.config.duplicate_window) is not None:
            window = min(window, timedelta(seconds=seconds))  # an operator may have shortened it
        old = {
            message.data: message
            for message in messages
            if not now - window / 2 < message.at <= now
        }
        if not old:
            return messages
        stored: set[str] = set()

        def take(message: Message) -> None:
            # Its id proves nothing: each user that may publish there can choose it.
            if (found := old.get(message.data)) is not None:
                stored.add(found.headers[MSG_ID])

        for subject in {message.subject for message in old.values()}:
            await replay.read(self._connection, self._stream, subject, take)
        if stored:
            _log.info("%d events had been stored before the outage", len(stored))
        return [message for message in messages if message.headers[MSG_ID] not in stored]


def _in_turns(messages: Iterable[OutgoingMessage]) -> Iterable[list[OutgoingMessage]]:
    """`messages` in lists that hold each key at most once; those of one key keep their order."""
    turns: list[list[OutgoingMessage]] = []
    turn_of: dict[str, int] = {}
    for message in messages:
        number = turn_of[message.key] = turn_of.get(message.key, -1) + 1
        if number == len(turns):
            turns.append([])
        turns[number].append(message)
    return turns
