"""The outbox: publishes events from the journal to the stream, in the order in which they happened.

An event leaves the journal only after the stream has acknowledged it: an outage of any length
delays events and loses none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime

from bridge.box.journal.entry import PendingEvent
from bridge.box.journal.journal import Journal
from bridge.bus.jetstream.publish import OutgoingMessage
from bridge.bus.jetstream.publisher import LIMIT, Publisher
from bridge.observe import Metrics
from bridge.subjects import BOX_HOST, BOX_SEQ, MSG_ID, TRACEPARENT, Subjects

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
                doubtful = page[0].n <= self._journal.last_before_restart
                await self._publisher.publish(list(map(self._outgoing, page)), doubtful=doubtful)
                self._journal.mark_stored([item.n for item in page])
                self._metrics.events.inc(len(page))
                after = page[-1].n
                for item in page:
                    if listener := self._listeners.get(item.event.instance_id):
                        listener(item.seq)
            self._oldest = None
            self._empty.set()

    def _outgoing(self, item: PendingEvent) -> OutgoingMessage:
        event = item.event
        headers = {
            MSG_ID: f"{event.instance_id}.{item.seq}",
            BOX_SEQ: str(item.seq),
            BOX_HOST: self._host,
        }
        if item.traceparent:
            headers[TRACEPARENT] = item.traceparent
        return OutgoingMessage(
            subject=self._subjects.events(event.service),
            data=item.data,
            headers=headers,
            key=event.instance_id,
            at=event.timestamp,
        )
