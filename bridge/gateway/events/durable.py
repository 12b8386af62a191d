"""Events under a durable name: each is handled, whoever of the workers is killed meanwhile.

The server remembers what was acknowledged, so an event that its worker neither acknowledged, nor
gave back, comes again after `ack_wait` seconds, to that worker or to another one of the name: at
least once. Within what one process remembers it is exactly once: an event whose `ack` was called
here is not handed out here again, be it stored twice or delivered twice, by its ``Box-Seq``.

One worker that acknowledges each event before it takes the next one gets them in order.
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
from bridge.bus.jetstream.follower import Begin, Reset, Start
from bridge.bus.jetstream.pull_consumer import LOOK, PullConsumer
from bridge.errors import BusError, ConfigError
from bridge.gateway.events.filter import EventFilter, Services, read_event
from bridge.protocol import InstanceEvent, InstanceState
from bridge.subjects import BOX_HOST, BOX_SEQ, check_name
from bridge.tasks import task_scope

ACK_WAIT: Final = 30.0  # seconds without an answer after which an event comes again
MAX_UNACKED: Final = 16  # events that one worker holds at once

_REMEMBERED: Final = 100_000  # acknowledged events that a process knows again; about 10 MB
_TIMEOUT: Final = 5.0  # seconds for the server to confirm an answer
_REASON: Final = 1000  # letters of the reason for a drop; the answer must fit into a message

_ACK: Final = b"+ACK"
_WORKING: Final = b"+WPI"
_BACK: Final = b"-NAK"
_MALFORMED: Final = b"+TERM not an event"


class Delivery:
    """An event in the hands of this worker, to be answered with `ack`, `retry` or `drop`.

    Each answer is confirmed by the server. It raises CutOff and NoResponders (not heard: the event
    comes again after `ack_wait`) and NoReply (it may come again); all are BusErrors.
    """

    __slots__ = ("_message", "_owner", "_position", "box_seq", "event")

    def __init__(
        self, owner: DurableEvents, message: Message, position: AckSubject, event: InstanceEvent
    ) -> None:
        number = message.headers.get(BOX_SEQ, "")
        self.event = event
        self.box_seq = int(number) if number.isdecimal() and len(number) < 20 else 0
        self._owner = owner
        self._message = message
        self._position = position

    @property
    def data(self) -> bytes:
        """Its payload as it came, fields that nobody here knows among them."""
        return self._message.data

    @property
    def seq(self) -> int:
        """Its sequence in the stream."""
        return self._position.stream_seq

    @property
    def attempt(self) -> int:
        """1 when it comes for the first time."""
        return self._position.attempt

    @property
    def time(self) -> datetime:
        """When it was stored, by the server's clock."""
        return datetime.fromtimestamp(self._position.time_ns // 1000 / 1_000_000, UTC)

    @property
    def headers(self) -> Mapping[str, str]:
        """Its headers, as ``traceparent``."""
        return self._message.headers

    @property
    def host(self) -> str:
        """The host that told it; empty where it does not say."""
        return self._message.headers.get(BOX_HOST, "")

    async def ack(self) -> None:
        """It was handled. From this call on this process is not handed it again: should it come
        again because this raised, it is acknowledged in passing.
        """
        self._owner.remember(self)
        await self._answer(_ACK)

    async def retry(self, delay: float = 0.0) -> None:
        """It shall come again after `delay` seconds, here or at another worker; later events of
        its instance may be handed out before it.
        """
        delay_ns = max(0, int(delay * 1_000_000_000))
        await self._answer(_BACK + b" " + json.dumps({"delay": delay_ns}).encode())

    async def drop(self, reason: str) -> None:
        """It shall never come again, unhandled; the server tells `reason` in an advisory."""
        await self._answer(f"+TERM {' '.join(reason.split())[:_REASON]}".encode())

    async def working(self) -> None:
        """It is still being handled: `ack_wait` starts anew."""
        await self._owner.tell(self, _WORKING)
        self._owner.hold(self)

    async def _answer(self, answer: bytes) -> None:
        self._owner.let_go(self)
        await self._owner.tell(self, answer)

    @property
    def reply(self) -> str:
        """Where the server waits for the answer."""
        return self._message.reply


class DurableEvents:
    """Events to be handled under a name that lasts, by any number of workers::

        async with DurableEvents.open(connection, "mailer", "web") as deliveries:
            async for delivery in deliveries:
                if isinstance(delivery, Reset):
                    continue  # events were missed: see Reset
                await handle(delivery.event)
                await delivery.ack()

    See the module. A message that is no event is counted and terminated. A durable, or its stream,
    that was deleted is made again and goes on after what all workers had handled up to two seconds
    before; a `Reset` says where events were missed: aged out before they were handed to anybody, or
    lost with the stream.
    """

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
    ) -> None:
        if not (ack_wait > 0 and max_unacked > 0):
            raise ConfigError(f"durable {name}", "ack_wait and max_unacked must be above 0")
        self._connection = connection
        self._wanted = wanted
        self._ack_wait = ack_wait
        self._max_unacked = max_unacked
        self._follow = follow
        self._ended = False
        self._waiting: deque[Delivery | Reset] = deque()
        self._held: OrderedDict[int, tuple[float, Delivery]] = OrderedDict()
        self._done: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._arrived = asyncio.Event()
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
    ) -> AsyncIterator[DurableEvents]:
        """Work under `name`, which is made where there is none yet, and then begins at `start`.

        Events that go to other `states` are acknowledged unseen. At most `max_unacked` events are
        with this worker at once, so fewer share the work more evenly; one that was not answered
        within `ack_wait` seconds counts no more. Without `follow` the iteration ends when all that
        is stored has been handled, by whatever worker. The workers of a name agree on service,
        states and `ack_wait` (the last one to say is heard).

        Raises DurableMismatch for a durable that reads other services, NameRefused for names that
        cannot be, StoreUnsuitable where this user may not. Waits for a stream that does not exist
        yet. What is held unhandled at the end of the block goes to the other workers at once.
        """
        durable = cls(
            connection,
            name,
            EventFilter.of(service, states),
            start=start,
            ack_wait=ack_wait,
            max_unacked=max_unacked,
            follow=follow,
        )
        try:
            async with task_scope() as tasks:
                tasks.create_task(durable.consumer.run(), name=f"durable-{name}")
                await durable.consumer.ready.wait()
                yield durable
        finally:
            durable._give_back()  # to others, now that this worker asks for nothing any more

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delivery | Reset:
        while True:
            while not self._waiting:
                if self._ended:
                    raise StopAsyncIteration
                self._arrived.clear()
                await self._arrived.wait()
            delivery = self._waiting.popleft()
            if isinstance(delivery, Reset):
                return delivery
            if self._is_done(delivery):
                self._pass(delivery)
                continue
            held = self._held.get(delivery.seq)
            if held is None or held[1] is not delivery:
                continue  # it was given back or dropped in its earlier delivery
            if held[0] - time.monotonic() < self._ack_wait / 2:
                self._send(delivery, _WORKING)
                self.hold(delivery)
            return delivery

    # ── answers, for Delivery ────────────────────────────────────────────────────────────

    async def tell(self, delivery: Delivery, answer: bytes) -> None:
        """Have the server confirm `answer`; raises CutOff, NoResponders, NoReply."""
        await self._connection.request(delivery.reply, answer, timeout=_TIMEOUT)

    def hold(self, delivery: Delivery) -> None:
        """It is this worker's for another `ack_wait`."""
        self._held[delivery.seq] = time.monotonic() + self._ack_wait, delivery
        self._held.move_to_end(delivery.seq)

    def let_go(self, delivery: Delivery) -> None:
        """It was answered: there is room for another."""
        if self._held.pop(delivery.seq, None) is not None:
            self.consumer.ask()

    def remember(self, delivery: Delivery) -> None:
        """It was handled, and must not be handed out again."""
        if delivery.box_seq:
            self._done[delivery.event.instance_id, delivery.box_seq] = None
            if len(self._done) > _REMEMBERED:
                self._done.popitem(last=False)

    def _is_done(self, delivery: Delivery) -> bool:
        return (delivery.event.instance_id, delivery.box_seq) in self._done

    # ── the consumer's taker ─────────────────────────────────────────────────────────────

    def room(self) -> int:
        return self._max_unacked - len(self._held)

    def take(self, message: Message, position: AckSubject) -> None:
        event = read_event(message, self._connection.metrics)
        if event is None:
            with contextlib.suppress(BusError):
                self._connection.publish(message.reply, _MALFORMED)
            return
        delivery = Delivery(self, message, position, event)
        if not self._wanted.takes(event) or self._is_done(delivery):
            self._send(delivery, _ACK)
            return
        if delivery.seq in self._held:
            self._unqueue(self._held[delivery.seq][1])  # it comes again: this one is in its stead
        self.hold(delivery)
        self._waiting.append(delivery)
        self._arrived.set()

    def reset(self, reset: Reset) -> None:
        self._waiting.append(reset)
        self._arrived.set()

    def tick(self) -> None:
        """Let go of what was not answered in time: the server hands it out again."""
        now = time.monotonic()
        while self._held:
            seq, (deadline, delivery) = next(iter(self._held.items()))
            if deadline > now:
                return
            del self._held[seq]
            self._unqueue(delivery)
            self.consumer.ask()

    def _unqueue(self, delivery: Delivery) -> None:
        with contextlib.suppress(ValueError):  # it has been handed out
            self._waiting.remove(delivery)

    def looked(self, unhandled: int) -> None:
        if not (self._follow or unhandled):
            self._ended = True
            self._arrived.set()

    def _pass(self, delivery: Delivery) -> None:
        """Acknowledge once more what was handled here."""
        self._send(delivery, _ACK)
        self.let_go(delivery)

    def _send(self, delivery: Delivery, answer: bytes) -> None:
        with contextlib.suppress(BusError):  # unheard it comes again, and is answered again
            self._connection.publish(delivery.reply, answer)

    def _give_back(self) -> None:
        for delivery in self._waiting:
            if isinstance(delivery, Delivery):
                self._send(delivery, _BACK)
