"""Delivers instance events to an HTTP endpoint: at least once, in order for each instance.

An event is acknowledged only after the endpoint accepted it (2xx), or after it was stored as a dead
letter: if the relay is killed before, the event comes again. Temporary failures (5xx, 408, 425,
429, a redirect, silence, no connection) are retried after a growing pause. Any other 4xx, and too
many attempts, make a dead letter. `delivery_queue` has the order, `cloudevents` the headers.

Only one relay may run under a name at a time: two would both hold events of one instance.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final, Literal

from msgspec import Struct

from bridge.bus.core.connection import Connection
from bridge.bus.jetstream.dead_letters import WINDOW, ensure_dead_stream
from bridge.bus.jetstream.publish import OutgoingMessage
from bridge.bus.jetstream.publisher import Publisher
from bridge.bus.jetstream.pull_consumer import outstanding
from bridge.bus.jetstream.start_position import Begin, Reset, Start
from bridge.errors import BusError
from bridge.gateway.events.durable import Delivery, DurableEvents
from bridge.gateway.relay.cloudevents import ce_headers, dead_headers, one_line
from bridge.gateway.relay.delivery_queue import Backoff, DeliveryQueue, QueuedEvent
from bridge.gateway.relay.webhook import Outcome, Webhook, WebhookResponse, shown
from bridge.protocol import InstanceState, now
from bridge.subjects import MSG_ID, TRACEPARENT
from bridge.tasks import task_scope

_log = logging.getLogger(__name__)

_AT_ONCE: Final = 8  # concurrent requests
_MAX_UNACKED: Final = 256  # events in the queue, including those that wait for another attempt
_ACK_WAIT: Final = 10.0  # seconds after which an event of a relay that died comes again
_ACK_DELAY: Final = 1.0  # seconds that nats-server may take longer
_GRACE: Final = 2.0  # seconds that a stop waits beyond a request's timeout


class RelayConfig(Struct, frozen=True, kw_only=True):
    """Which events are relayed, where to, and how often they are retried.

    `timeout` is in seconds, for one request. A durable that does not exist yet begins at `start`.
    `headers` are sent with each request; their values are never logged or stored.
    """

    url: str
    durable: str = "relay"
    services: tuple[str, ...] = ()
    states: tuple[InstanceState, ...] = ()
    headers: Mapping[str, str] = {}
    timeout: float = 10.0
    max_attempts: int = 20
    backoff: Backoff = Backoff()
    start: Begin = Start.NOW
    ack_wait: float = _ACK_WAIT


class Counts(Struct, kw_only=True):
    """The outcomes of this run's events."""

    delivered: int = 0
    retried: int = 0
    dead: int = 0
    left: int = 0


class Notice(Struct, frozen=True, kw_only=True):
    """A report for the operator of a relay: a sentence and the counts."""

    what: Literal["waiting", "started", "outage", "recovered", "dead_letter", "missed", "stopped"]
    at: datetime
    text: str
    counts: Counts


class Relay:
    """See the module::

    relay = Relay(connection, RelayConfig(url="https://example.com/events"))
    await relay.run()  # until `relay.stop()`
    """

    def __init__(
        self,
        connection: Connection,
        config: RelayConfig,
        on_notice: Callable[[Notice], None] | None = None,
    ) -> None:
        self.counts = Counts()
        self.started = False
        self._connection = connection
        self._config = config
        self._on_notice = on_notice
        self._queue: DeliveryQueue[Delivery] = DeliveryQueue(config.backoff)
        self._change = asyncio.Event()
        self._stopping = asyncio.Event()
        self._outage_start = 0.0
        self._dead = connection.subjects.dead(config.durable)
        self._letters = Publisher(
            connection,
            connection.subjects.dead_stream,
            WINDOW,
            now,
            lambda: ensure_dead_stream(connection),
        )

    def stop(self) -> None:
        """Finish the running requests, for at most their timeout, and leave the other events."""
        self._stopping.set()
        self._change.set()

    async def run(self) -> Counts:
        """Relay until `stop`; returns the counts.

        Raises ConfigError for an invalid URL or header, and as `DurableEvents.open` and
        `topology.ensure` do.
        """
        config = self._config
        async with Webhook.open(
            config.url,
            headers=config.headers,
            timeout=config.timeout,
        ) as webhook:
            await ensure_dead_stream(self._connection)
            await self._settle()
            if not self._stopping.is_set():
                async with DurableEvents.open(
                    self._connection,
                    config.durable,
                    config.services or None,
                    states=config.states or None,
                    start=config.start,
                    ack_wait=config.ack_wait,
                    max_unacked=_MAX_UNACKED,
                ) as deliveries:
                    await self._relay(deliveries, webhook)
        counts = self.counts
        self._notify(
            "stopped",
            f"{counts.delivered} delivered, {counts.retried} attempts failed, {counts.dead} dead "
            f"letters, {counts.left} held and left for the next run",
        )
        return counts

    async def _settle(self) -> None:
        """Wait until the unanswered events of an earlier run come again: otherwise newer events of
        the same instances would come first.
        """
        stream, name = self._connection.subjects.events_stream, self._config.durable
        if not (count := await outstanding(self._connection, stream, name)):
            return
        wait = self._config.ack_wait + 2 * _ACK_DELAY
        self._notify("waiting", f"{wait:g} s, for {count} unanswered events of an earlier run")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self._stopping.wait()

    async def _relay(self, deliveries: DurableEvents, webhook: Webhook) -> None:
        config = self._config
        self.started = True
        services = ", ".join(config.services) or "all services"
        self._notify(
            "started", f"events of {services} to {shown(config.url)}, as durable {config.durable}"
        )
        async with task_scope() as tasks:
            intake = tasks.create_task(self._take_in(deliveries), name="relay-intake")
            tasks.create_task(self._extend(), name="relay-extend")
            workers = [
                tasks.create_task(self._work(webhook), name=f"relay-{number}")
                for number in range(_AT_ONCE)
            ]
            await self._stopping.wait()
            intake.cancel()
            await asyncio.wait(workers, timeout=config.timeout + _GRACE)
        await self._give_back()

    async def _take_in(self, deliveries: DurableEvents) -> None:
        async for delivery in deliveries:
            if isinstance(delivery, Reset):
                self._notify(
                    "missed",
                    f"the stream of events was {delivery.reason}: events from sequence "
                    f"{delivery.expected} on are missing; the relay continues at {delivery.next}",
                )
                continue
            self._queue.put(delivery)
            self._change.set()

    async def _extend(self) -> None:
        """Extend `ack_wait` of all events in the queue."""
        while True:
            await asyncio.sleep(self._config.ack_wait / 3)
            with contextlib.suppress(BusError):
                for held in list(self._queue):
                    if held in self._queue:
                        await held.item.working()

    async def _give_back(self) -> None:
        """Give back the remaining events: the next run gets them at once and in order."""
        left = sorted(self._queue, key=lambda held: held.item.seq)
        self.counts.left = len(left)
        with contextlib.suppress(BusError):  # the server delivers them again in any case
            for held in left:
                await held.item.retry()

    # ── sending ────────────────────────────────────────────────────────

    async def _work(self, webhook: Webhook) -> None:
        while held := await self._next():
            delivery = held.item
            headers = ce_headers(
                delivery.event,
                box_seq=delivery.box_seq,
                seq=delivery.seq,
                host=delivery.host,
                traceparent=delivery.headers.get(TRACEPARENT, ""),
            )
            await self._judge(held, await webhook.post(delivery.data, headers))
            self._change.set()

    async def _next(self) -> QueuedEvent[Delivery] | None:
        """The next event to send, once there is one; None after `stop`."""
        clock = asyncio.get_running_loop().time
        while not self._stopping.is_set():
            if held := self._queue.next(clock()):
                return held
            self._change.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._queue.wait(clock())):
                    await self._change.wait()
        return None

    async def _judge(self, held: QueuedEvent[Delivery], answer: WebhookResponse) -> None:
        if answer.verdict is Outcome.TAKEN:
            self.counts.delivered += 1
            await self._settle_event(held, answered=True)
            return
        if answer.verdict is Outcome.REFUSED:
            await self._store_dead_letter(held, answer.reason)
            await self._settle_event(held, answered=True)
            return
        self.counts.retried += 1
        if held.failures + 1 >= self._config.max_attempts:
            await self._store_dead_letter(held, answer.reason)
            await self._settle_event(held, answered=False)
            return
        was_out = self._queue.out
        at = asyncio.get_running_loop().time()
        chance = random.random()  # noqa: S311, it spreads the load
        self._queue.fail(held, at, chance, answer.retry_after)
        if self._queue.out and not was_out:
            self._outage_start = at
            self._notify("outage", f"{shown(self._config.url)} accepts no event: {answer.reason}")

    async def _settle_event(self, held: QueuedEvent[Delivery], *, answered: bool) -> None:
        """Acknowledge the event before the instance's next one is sent."""
        with contextlib.suppress(BusError):  # if it comes again, it is recognised as handled
            await held.item.ack()
        was_out = self._queue.out
        self._queue.settle(held, succeeded=answered)
        if was_out and not self._queue.out:
            seconds = asyncio.get_running_loop().time() - self._outage_start
            self._notify(
                "recovered", f"{shown(self._config.url)} answers again, after {seconds:.1f} s"
            )

    async def _store_dead_letter(self, held: QueuedEvent[Delivery], reason: str) -> None:
        """Return when the event is stored as a dead letter, however long that takes.

        A letter that can never be stored, as one that is too large, would hold the next ones up. It
        is stored without its payload and the event's headers; the event stays in its stream.
        """
        delivery = held.item
        letter = self._dead_letter(held, reason, delivery.headers, delivery.data)
        if refusal := await self._store_letter(letter):
            reason = f"{reason}; stored without the payload: {refusal}"
            known = {MSG_ID: delivery.headers.get(MSG_ID, "")}
            letter = self._dead_letter(held, reason, known, b"")
            if refusal := await self._store_letter(letter):
                reason = f"{reason}; not stored: {refusal}"
        self.counts.dead += 1
        event = delivery.event
        name = f"{event.instance_id} {event.to_state} (stream sequence {delivery.seq})"
        self._notify("dead_letter", f"{name}, to {self._dead}: {one_line(reason)[:500]}")

    def _dead_letter(
        self, held: QueuedEvent[Delivery], reason: str, headers: Mapping[str, str], data: bytes
    ) -> OutgoingMessage:
        return OutgoingMessage(
            subject=self._dead,
            data=data,
            headers=dead_headers(
                headers,
                reason=reason,
                attempts=held.failures + 1,
                seq=held.item.seq,
                durable=self._config.durable,
            ),
            key=held.item.event.instance_id,
            at=now(),
        )

    async def _store_letter(self, letter: OutgoingMessage) -> BusError | None:
        """Return when the letter is stored, or why it can never be."""
        refusals: list[BusError] = []
        await self._letters.publish([letter], on_refusal=lambda message, exc: refusals.append(exc))
        return refusals[0] if refusals else None

    def _notify(self, what: str, text: str) -> None:
        if self._on_notice is None:
            return
        counts = Counts(**{name: getattr(self.counts, name) for name in Counts.__struct_fields__})
        self._on_notice(Notice(what=what, at=now(), text=text, counts=counts))  # type: ignore[arg-type]
