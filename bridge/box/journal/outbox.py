"""The outbox: publishes events from the journal to the stream, in the order in which they happened.

An event leaves the journal only after the stream has acknowledged it: an outage of any length
delays events and loses none. An event that can never be stored is kept apart in the journal, with
the reason, and delays no other. If the bus refuses the events of one service, as without the
permission for their subject, these wait in their order, and the events of other services go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from array import array
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

from msgspec import Struct, field

from bridge.box.journal.entry import PendingEvent
from bridge.box.journal.journal import Journal
from bridge.bus.jetstream.publish import OutgoingMessage
from bridge.bus.jetstream.publisher import LIMIT, Publisher
from bridge.errors import BusError, ProtocolError
from bridge.log_limit import LimitedLog, cause_of
from bridge.observe import Metrics
from bridge.subjects import BOX_HOST, BOX_SEQ, MSG_ID, TRACEPARENT, Subjects, valid_trace

_log = logging.getLogger(__name__)

_HOLD: Final = 2.0  # seconds until the events of a refused service are tried again
_MAX_HOLD: Final = 30.0  # the same after many refusals

Listener = Callable[[int], None]
"""Called with the Box-Seq of an event once the stream has stored it."""


class _Held(Struct):
    """The events of one service that wait: their `numbers`, ascending, and why."""

    reason: str
    since: datetime
    numbers: array[int] = field(default_factory=lambda: array("q"))
    retry_at: float = 0.0
    pause: float = _HOLD


class _Outcome(Struct):
    """What became of a page of events; the others are stored."""

    rejected: dict[int, str] = field(default_factory=dict)
    held: dict[int, BusError] = field(default_factory=dict)


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
        self._held: dict[str, _Held] = {}
        self._log = LimitedLog(_log)
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
        times = [self._oldest or self._journal.unwritten_since]
        times += [held.since for held in self._held.values()]
        return min((at for at in times if at is not None), default=None)

    @property
    def problem(self) -> str:
        """Why the stream does not take events now, at least those of a service; "" if it does, or
        if that is unknown.
        """
        reasons = (held.reason for held in self._held.values())
        return self._publisher.problem or next(reasons, "")

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
            await self._wait_due()
            await self._retry_held()
            while page := await self._journal.pending(after, LIMIT):
                self._oldest = page[0].event.timestamp
                await self._publish_page(page)
                after = page[-1].n
            self._oldest = None
            self._empty.set()

    async def _wait_due(self) -> None:
        """Return when there are new events, or held ones are due."""
        due = min((held.retry_at for held in self._held.values()), default=None)
        timeout = None if due is None else max(0.0, due - time.monotonic())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._journal.new_events.wait()
        self._journal.new_events.clear()

    async def _publish_page(self, page: Sequence[PendingEvent]) -> None:
        """Publish `page`, except for events of services that are held: these wait behind others."""
        sent: list[PendingEvent] = []
        for item in page:
            if held := self._held.get(item.event.service):
                held.numbers.append(item.n)
            else:
                sent.append(item)
        outcome = await self._publish(sent)
        for item in sent:
            if exc := outcome.held.get(item.n):
                self._hold(item, exc)
        self._settle([item for item in sent if item.n not in outcome.held], outcome.rejected)

    def _settle(self, items: Sequence[PendingEvent], rejected: dict[int, str]) -> None:
        """Remove `items` from the journal: they are stored, apart from those `rejected`."""
        for item in items:
            if item.n in rejected:
                self._reject(item, rejected[item.n])
        if items:
            self._journal.mark_stored([item.n for item in items])
        self._metrics.events.inc(len(items) - len(rejected))
        for item in items:
            if listener := self._listeners.get(item.event.instance_id):
                listener(item.seq)

    # ── services whose events are refused for now ─────────────────────────────────────────────

    def _hold(self, item: PendingEvent, exc: BusError) -> None:
        service = item.event.service
        if (held := self._held.get(service)) is None:
            held = self._held[service] = _Held(reason=str(exc), since=item.event.timestamp)
            held.retry_at = time.monotonic() + held.pause
            self._log.report(
                cause_of(exc), "the events of %s wait, other services go on: %s", service, exc
            )
        held.numbers.append(item.n)

    async def _retry_held(self) -> None:
        """Publish held events, each service from its oldest one on, as far as that is due."""
        for service, held in list(self._held.items()):
            if held.retry_at <= time.monotonic() and await self._retry(held):
                del self._held[service]
                _log.info("the events of %s are stored again", service)

    async def _retry(self, held: _Held) -> bool:
        """Whether all events of `held` are stored now."""
        while held.numbers:
            wanted = frozenset(held.numbers[:LIMIT])
            rows = await self._journal.pending(held.numbers[0] - 1, LIMIT)
            page = [item for item in rows if item.n in wanted]
            if not page:
                del held.numbers[0]  # it could not be read, and is kept apart
                continue
            held.since = page[0].event.timestamp
            outcome = await self._publish(page, doubtful=True)
            done = [item for item in page if item.n not in outcome.held]
            self._settle(done, outcome.rejected)
            gone = {item.n for item in done}
            left = [n for n in held.numbers[:LIMIT] if n not in gone]
            held.numbers[:LIMIT] = array("q", left)
            if outcome.held:
                held.reason = str(next(iter(outcome.held.values())))
                held.pause = min(held.pause * 2, _MAX_HOLD)
                held.retry_at = time.monotonic() + held.pause
                return False
        return True

    async def _publish(self, page: Sequence[PendingEvent], *, doubtful: bool = False) -> _Outcome:
        """Return when each event of `page` is stored, apart from those in the outcome: they can
        never be stored, or their service is refused for now.
        """
        outcome = _Outcome()
        messages: list[OutgoingMessage] = []
        numbers: dict[str, int] = {}
        for item in page:
            try:
                message = self._outgoing(item)
            except ProtocolError as exc:  # its service is not a name
                outcome.rejected[item.n] = str(exc)
            else:
                numbers[message.headers[MSG_ID]] = item.n
                messages.append(message)

        def reject(message: OutgoingMessage, exc: BusError) -> None:
            outcome.rejected[numbers[message.headers[MSG_ID]]] = str(exc)

        def hold(message: OutgoingMessage, exc: BusError) -> None:
            outcome.held[numbers[message.headers[MSG_ID]]] = exc

        if messages:
            await self._publisher.publish(
                messages,
                doubtful=doubtful or page[0].n <= self._journal.last_before_restart,
                on_refusal=reject,
                on_hold=hold,
            )
        return outcome

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
