"""The outbox: publishes events from the journal to the stream, in the order in which they happened.

An event leaves the journal only after the stream has acknowledged it: an outage of any length
delays events and loses none. An event that can never be stored is kept apart in the journal, with
the reason, and delays no other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import datetime

from bridge.box.journal.entry import PendingEvent
from bridge.box.journal.journal import Journal
from bridge.bus.jetstream.publish import OutgoingMessage
from bridge.bus.jetstream.publisher import LIMIT, Publisher
from bridge.errors import BusError, ProtocolError
from bridge.observe import Metrics
from bridge.subjects import BOX_HOST, BOX_SEQ, MSG_ID, TRACEPARENT, Subjects, valid_trace

_log = logging.getLogger(__name__)

Listener = Callable[[int], None]
"""Called with the Box-Seq of an event once the stream has stored it."""


class Outbox:
    """See the module. `run` works until cancelled."""

    def __init__(
        self,
        journal: Journal,
        publisher: Publisher,
        subjects: Subjects,
        host: str,
        metrics: Metrics,
    ) -> None:
        self._journal = journal
        self._publisher = publisher
        self._subjects = subjects
        self._host = host
        self._metrics = metrics
        self._listeners: dict[str, Listener] = {}
        self._empty = asyncio.Event()
        self._oldest: datetime | None = None
        metrics.backlog.set_function(lambda: journal.backlog)
        metrics.rejected.set_function(lambda: journal.rejected)

    def listen(self, instance_id: str, listener: Listener) -> None:
        """Call `listener` for each stored event of the instance, until `forget`."""
        self._listeners[instance_id] = listener

    def forget(self, instance_id: str) -> None:
        """The instance publishes no more events."""
        self._listeners.pop(instance_id, None)

    @property
    def oldest(self) -> datetime | None:
        """The time of the oldest event that is not stored yet; None if all are."""
        return self._oldest or self._journal.unwritten_since

    @property
    def problem(self) -> str:
        """Why the stream does not take events now; "" if it does, or if that is unknown."""
        return self._publisher.problem

    async def flush(self) -> None:
        """Return when the stream has stored every event that the journal got so far."""
        await self._journal.wait_written()
        while self._journal.backlog:
            self._empty.clear()
            await self._empty.wait()

    async def run(self) -> None:
        """Publish the events in the journal, and those that come."""
        after = 0
        while True:
            await self._journal.new_events.wait()
            self._journal.new_events.clear()
            while page := await self._journal.pending(after, LIMIT):
                self._oldest = page[0].event.timestamp
                rejected = await self._publish(page)
                for item, reason in rejected:
                    self._reject(item, reason)
                self._journal.mark_stored([item.n for item in page])
                self._metrics.events.inc(len(page) - len(rejected))
                after = page[-1].n
                for item in page:
                    if listener := self._listeners.get(item.event.instance_id):
                        listener(item.seq)
            self._oldest = None
            self._empty.set()

    async def _publish(self, page: Sequence[PendingEvent]) -> list[tuple[PendingEvent, str]]:
        """Return when each event of `page` is stored, apart from those returned: they can never be
        stored, for the reason given.
        """
        rejected: dict[int, str] = {}
        messages: list[OutgoingMessage] = []
        numbers: dict[str, int] = {}
        for item in page:
            try:
                message = self._outgoing(item)
            except ProtocolError as exc:  # its service is not a name
                rejected[item.n] = str(exc)
            else:
                numbers[message.headers[MSG_ID]] = item.n
                messages.append(message)

        def reject(message: OutgoingMessage, exc: BusError) -> None:
            rejected[numbers[message.headers[MSG_ID]]] = str(exc)

        doubtful = page[0].n <= self._journal.last_before_restart
        if messages:
            await self._publisher.publish(messages, doubtful=doubtful, on_refusal=reject)
        return [(item, rejected[item.n]) for item in page if item.n in rejected]

    def _reject(self, item: PendingEvent, reason: str) -> None:
        name = f"{item.event.instance_id} {item.event.to_state}"
        _log.error("the event %s can never be stored, and is kept in the journal: %s", name, reason)
        self._journal.reject(item, reason)

    def _outgoing(self, item: PendingEvent) -> OutgoingMessage:
        event = item.event
        headers = {
            MSG_ID: f"{event.instance_id}.{item.seq}",
            BOX_SEQ: str(item.seq),
            BOX_HOST: self._host,
        }
        if trace := valid_trace(item.traceparent):
            headers[TRACEPARENT] = trace
        return OutgoingMessage(
            subject=self._subjects.events(event.service),
            data=item.data,
            headers=headers,
            key=event.instance_id,
            at=event.timestamp,
        )
