"""Events under a durable name: each is handled even if a worker is killed.

At least once: the server remembers which events were acknowledged. It delivers an event without an
answer again after `ack_wait` seconds, to any worker of the name. Within one process exactly once:
an event that was acknowledged here is not returned here again, even if it was stored or delivered
twice (by its ``Box-Seq``).

A single worker that acknowledges each event before it takes the next gets the events in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import UTC, datetime
from typing import Final, Self

from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.jetstream.ack_subject import AckSubject
from bridge.bus.jetstream.pull_consumer import LOOK, PullConsumer
from bridge.bus.jetstream.start_position import Begin, Reset, Start
from bridge.errors import BusError, ConfigError
from bridge.gateway.events.filter import EventFilter, OnRefused, Services, read_event
from bridge.protocol import InstanceEvent, InstanceState
from bridge.subjects import BOX_HOST, BOX_SEQ, check_name, parse_sequence
from bridge.tasks import task_scope

ACK_WAIT: Final = 30.0  # seconds without an answer after which an event is delivered again
MAX_UNACKED: Final = 16  # unanswered events of one worker

_MAX_ACKS: Final = 100_000  # acknowledged events that a process recognises; about 10 MB
_TIMEOUT: Final = 5.0  # seconds for the server to confirm an answer
_MAX_REASON: Final = 1000  # letters of the reason for a drop; the answer must fit into a message

_ACK: Final = b"+ACK"
_WORKING: Final = b"+WPI"
_NAK: Final = b"-NAK"
_MALFORMED: Final = b"+TERM not an event"


class Delivery:
    """An event that this worker must answer with `ack`, `retry` or `drop`.

    The server confirms each answer. The answers raise CutOff and NoResponders (not sent: the event
    comes again after `ack_wait`) and NoReply (it may come again); all are BusErrors.
    """

    __slots__ = ("_message", "_position", "_worker", "box_seq", "event")

    def __init__(
        self, worker: _Worker, message: Message, position: AckSubject, event: InstanceEvent
    ) -> None:
        self.event = event
        self.box_seq = parse_sequence(message.headers.get(BOX_SEQ, "")) or 0
        self._worker = worker
        self._message = message
        self._position = position

    @property
    def data(self) -> bytes:
        """The payload as it arrived, including fields that this version does not know."""
        return self._message.data

    @property
    def seq(self) -> int:
        """The sequence in the stream."""
        return self._position.stream_seq

    @property
    def attempt(self) -> int:
        """The number of this delivery of the event, from 1."""
        return self._position.attempt

    @property
    def time(self) -> datetime:
        """The time of storing, by the server's clock."""
        return datetime.fromtimestamp(self._position.time_ns // 1000 / 1_000_000, UTC)

    @property
    def headers(self) -> Mapping[str, str]:
        """The message's headers, such as ``traceparent``."""
        return self._message.headers

    @property
    def host(self) -> str:
        """The host that reported the event; empty if the message names none."""
        return self._message.headers.get(BOX_HOST, "")

    async def ack(self) -> None:
        """The event was handled. This process does not return it again: if this call raises and the
        server delivers the event again, it is acknowledged without being returned.
        """
        self._worker.remember(self)
        await self._answer(_ACK)

    async def retry(self, delay: float = 0.0) -> None:
        """Have the event delivered again after `delay` seconds, to any worker; later events of its
        instance may be returned before it.
        """
        delay_ns = max(0, int(delay * 1_000_000_000))
        await self._answer(_NAK + b" " + json.dumps({"delay": delay_ns}).encode())

    async def drop(self, reason: str) -> None:
        """Have the event never delivered again; the server publishes `reason` in an advisory."""
        await self._answer(f"+TERM {' '.join(reason.split())[:_MAX_REASON]}".encode())

    async def working(self) -> None:
        """The event is still being handled: `ack_wait` starts again."""
        await self._worker.send(self, _WORKING)
        self._worker.hold(self)

    async def _answer(self, answer: bytes) -> None:
        self._worker.release(self)
        await self._worker.send(self, answer)

    @property
    def reply(self) -> str:
        """The subject on which the server waits for the answer."""
        return self._message.reply


class DurableEvents:
    """Events under a durable name, for any number of workers::

        async with DurableEvents.open(connection, "mailer", "web") as deliveries:
            async for delivery in deliveries:
                if isinstance(delivery, Reset):
                    continue  # events are missing: see Reset
                await handle(delivery.event)
                await delivery.ack()

    See the module. A message that is not an event is counted and terminated. If the durable or its
    stream is deleted, the client creates the durable again and continues after the events that all
    workers had handled up to two seconds before. A `Reset` reports events that are missing: they
    aged out before their delivery, or were lost with the stream.
    """

    def __init__(self, worker: _Worker) -> None:
        self._worker = worker

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        connection: Connection,
        name: str,
        service: Services = None,
        *,
        states: Iterable[InstanceState] | None = None,
        start: Begin = Start.FIRST,
        ack_wait: float = ACK_WAIT,
        max_unacked: int = MAX_UNACKED,
        follow: bool = True,
        on_refused: OnRefused | None = None,
    ) -> AsyncIterator[DurableEvents]:
        """Work under `name`. A durable that does not exist yet is created and begins at `start`.

        Events that go to other `states` are acknowledged without being returned. This worker holds
        at most `max_unacked` unanswered events: a lower number shares the work more evenly. An
        event without an answer for `ack_wait` seconds no longer counts. Without `follow` the
        iteration ends when every stored event was handled, by any worker. All workers of a name
        must agree on service, states and `ack_wait` (the last worker to open sets it).
        `on_refused` gets the subject of a message that is no event, and the reason.

        Raises DurableMismatch for a durable that reads other services, NameRefused for an invalid
        name, ConfigError for a limit that is not above 0, and StoreUnsuitable if this NATS user may
        not. Waits for a stream that does not exist yet. When the block ends, unanswered events go
        to the other workers at once.
        """
        worker = _Worker(
            connection,
            name,
            EventFilter.of(service, states),
            start=start,
            ack_wait=ack_wait,
            max_unacked=max_unacked,
            follow=follow,
            on_refused=on_refused,
        )
        try:
            async with task_scope() as tasks:
                tasks.create_task(worker.consumer.run(), name=f"durable-{name}")
                await worker.consumer.ready.wait()
                yield cls(worker)
        finally:
            worker.give_back()  # after the last request: the server delivers them elsewhere

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delivery | Reset:
        return await self._worker.next()


class _Worker:
    """One worker of a durable: the events that it holds, and those that wait for the iterator."""

    def __init__(
        self,
        connection: Connection,
        name: str,
        wanted: EventFilter,
        *,
        start: Begin,
        ack_wait: float,
        max_unacked: int,
        follow: bool,
        on_refused: OnRefused | None,
    ) -> None:
        if not (ack_wait > 0 and max_unacked > 0):
            raise ConfigError(f"durable {name}", "ack_wait and max_unacked must be above 0")
        self.waiting: deque[Delivery | Reset] = deque()
        self._connection = connection
        self._wanted = wanted
        self._ack_wait = ack_wait
        self._max_unacked = max_unacked
        self._follow = follow
        self._on_refused = on_refused
        self._ended = False
        self._unacked: OrderedDict[int, tuple[float, Delivery]] = OrderedDict()
        self._acks: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._arrival = asyncio.Event()
        self.consumer = PullConsumer(
            connection,
            connection.subjects.events_stream,
            check_name("durable", name),
            self,
            subjects=wanted.subjects(connection.subjects),
            start=start,
            ack_wait=ack_wait,
            look=LOOK if follow else 0.0,
        )

    async def next(self) -> Delivery | Reset:
        """The next event or Reset for the iterator; raises StopAsyncIteration at the end."""
        while True:
            while not self.waiting:
                if self._ended:
                    raise StopAsyncIteration
                self._arrival.clear()
                await self._arrival.wait()
            delivery = self.waiting.popleft()
            if isinstance(delivery, Reset):
                return delivery
            if self._is_acked(delivery):
                self._publish(delivery, _ACK)
                self.release(delivery)
                continue
            deadline, newest = self._unacked.get(delivery.seq, (0.0, None))
            if newest is not delivery:
                continue  # an earlier delivery of it was given back or dropped
            if deadline - time.monotonic() < self._ack_wait / 2:
                self._publish(delivery, _WORKING)
                self.hold(delivery)
            return delivery

    def give_back(self) -> None:
        """Have the server deliver the events that wait to other workers."""
        for delivery in self.waiting:
            if isinstance(delivery, Delivery):
                self._publish(delivery, _NAK)

    # ── answers, for Delivery ────────────────────────────────────────────────────────────

    async def send(self, delivery: Delivery, answer: bytes) -> None:
        """Send `answer` and have the server confirm it. Raises CutOff, NoResponders, NoReply."""
        await self._connection.request(delivery.reply, answer, timeout=_TIMEOUT)

    def hold(self, delivery: Delivery) -> None:
        """Keep the event for another `ack_wait`."""
        self._unacked[delivery.seq] = time.monotonic() + self._ack_wait, delivery
        self._unacked.move_to_end(delivery.seq)

    def release(self, delivery: Delivery) -> None:
        """The event is answered: there is room for another."""
        if self._unacked.pop(delivery.seq, None) is not None:
            self.consumer.request()

    def remember(self, delivery: Delivery) -> None:
        """The event was handled, and must not be returned again."""
        if delivery.box_seq:
            self._acks[delivery.event.instance_id, delivery.box_seq] = None
            if len(self._acks) > _MAX_ACKS:
                self._acks.popitem(last=False)

    def _is_acked(self, delivery: Delivery) -> bool:
        return (delivery.event.instance_id, delivery.box_seq) in self._acks

    # ── the PullHandler ──────────────────────────────────────────────────────────────────

    def room(self) -> int:
        return self._max_unacked - len(self._unacked)

    def take(self, message: Message, position: AckSubject) -> None:
        event = read_event(message, self._connection.metrics, self._on_refused)
        if event is None:
            with contextlib.suppress(BusError):
                self._connection.publish(message.reply, _MALFORMED)
            return
        delivery = Delivery(self, message, position, event)
        if not self._wanted.takes(event) or self._is_acked(delivery):
            self._publish(delivery, _ACK)
            return
        if delivery.seq in self._unacked:
            self._unqueue(self._unacked[delivery.seq][1])  # this delivery replaces the earlier one
        self.hold(delivery)
        self.waiting.append(delivery)
        self._arrival.set()

    def reset(self, reset: Reset) -> None:
        self.waiting.append(reset)
        self._arrival.set()

    def tick(self) -> None:
        """Release the events whose time is over: the server delivers them again."""
        now = time.monotonic()
        while self._unacked:
            seq, (deadline, delivery) = next(iter(self._unacked.items()))
            if deadline > now:
                return
            del self._unacked[seq]
            self._unqueue(delivery)
            self.consumer.request()

    def set_backlog(self, count: int) -> None:
        if not (self._follow or count):
            self._ended = True
            self._arrival.set()

    def _unqueue(self, delivery: Delivery) -> None:
        with contextlib.suppress(ValueError):  # it was returned already
            self.waiting.remove(delivery)

    def _publish(self, delivery: Delivery, answer: bytes) -> None:
        with contextlib.suppress(BusError):  # if it is lost, the event comes again
            self._connection.publish(delivery.reply, answer)
