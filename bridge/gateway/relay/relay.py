"""Handing instance events to an HTTP endpoint: each one at least once, in order for each instance.

An event leaves its durable when the endpoint has taken it (2xx), or when it is stored as a dead
letter, and not before: whoever is killed meanwhile, it comes again. What may be answered otherwise
later (5xx, 408, 425, 429, a redirect, silence, no connection) is sent again after a growing pause;
any other 4xx, and too many attempts, make a dead letter. `lanes` has the order, `cloudevents` what
is sent.

One relay works under a name at a time: two would both hold events of one instance.
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
from bridge.bus.jetstream.follower import Begin, Reset, Start
from bridge.bus.jetstream.publish import OutgoingMessage
from bridge.bus.jetstream.publisher import Publisher
from bridge.bus.jetstream.pull_consumer import outstanding
from bridge.errors import BusError
from bridge.gateway.events.durable import Delivery, DurableEvents
from bridge.gateway.relay.cloudevents import ce_headers, dead_headers
from bridge.gateway.relay.delivery_queue import Backoff, DeliveryQueue, QueuedEvent
from bridge.gateway.relay.webhook import Outcome, Webhook, WebhookResponse, shown
from bridge.protocol import InstanceState, now
from bridge.subjects import TRACEPARENT
from bridge.tasks import task_scope

_log = logging.getLogger(__name__)

_AT_ONCE: Final = 8  # requests under way
_HELD: Final = 256  # events that are held, those that wait for another attempt among them
_ACK_WAIT: Final = 10.0  # seconds after which an event that a dead relay held comes again
_ACK_DELAY: Final = 1.0  # seconds more that nats-server takes for it
_GRACE: Final = 2.0  # seconds beyond a request's timeout that a stop waits for it


class RelayConfig(Struct, frozen=True, kw_only=True):
    """What is relayed, and how patiently. `timeout` is in seconds, for one request.

    `start` is where a durable begins that is not there yet. `headers` go with each request; their
    values are told to nobody else.
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
    """What has become of the events of this run."""

    delivered: int = 0
    retried: int = 0
    dead: int = 0
    left: int = 0


class Notice(Struct, frozen=True, kw_only=True):
    """Something that who runs a relay wants to know, as a sentence and as figures."""

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
        tell: Callable[[Notice], None] = lambda notice: None,
    ) -> None:
        self.counts = Counts()
        self.started = False
        self._connection = connection
        self._config = config
        self._tell = tell
        self._lanes: DeliveryQueue[Delivery] = DeliveryQueue(config.backoff)
        self._news = asyncio.Event()
        self._stopping = asyncio.Event()
        self._out_since = 0.0
        self._dead = connection.subjects.dead(config.durable)
        self._letters = Publisher(
            connection,
            connection.subjects.dead_stream,
            WINDOW,
            now,
            lambda: ensure_dead_stream(connection),
        )

    def stop(self) -> None:
        """Finish what is under way, for the timeout of a request at most, and leave the rest."""
        self._stopping.set()
        self._news.set()

    async def run(self) -> Counts:
        """Relay until `stop`; what became of the events.

        Raises ConfigError for a URL or header that cannot be, and what `DurableEvents.open` and
        `topology.ensure` raise.
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
                    max_unacked=_HELD,
                ) as deliveries:
                    await self._relay(deliveries, webhook)
        counts = self.counts
        self._say(
            "stopped",
            f"{counts.delivered} delivered, {counts.retried} attempts failed, {counts.dead} dead "
            f"letters, {counts.left} held and left for the next run",
        )
        return counts

    async def _settle(self) -> None:
        """Wait until what an earlier run still held comes again: newer events of the same instances
        would else come first.
        """
        stream, name = self._connection.subjects.events_stream, self._config.durable
        if not (count := await outstanding(self._connection, stream, name)):
            return
        wait = self._config.ack_wait + 2 * _ACK_DELAY
        self._say("waiting", f"{wait:g} s, for {count} events that an earlier run held")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self._stopping.wait()

    async def _relay(self, deliveries: DurableEvents, webhook: Webhook) -> None:
        config = self._config
        self.started = True
        what = ", ".join(config.services) or "all services"
        self._say(
            "started", f"events of {what} to {shown(config.url)}, as durable {config.durable}"
        )
        async with task_scope() as tasks:
            intake = tasks.create_task(self._take_in(deliveries), name="relay-intake")
            tasks.create_task(self._keep(), name="relay-keeper")
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
                self._say(
                    "missed",
                    f"the stream of events was {delivery.reason}: from sequence "
                    f"{delivery.expected} on some are missing, it goes on at {delivery.next}",
                )
                continue
            self._lanes.put(delivery)
            self._news.set()

    async def _keep(self) -> None:
        """Tell the server that what is held is not forgotten."""
        while True:
            await asyncio.sleep(self._config.ack_wait / 3)
            with contextlib.suppress(BusError):
                for held in list(self._lanes):
                    if held in self._lanes:
                        await held.item.working()

    async def _give_back(self) -> None:
        """What is left, in its order, so that the next run has it at once and in order."""
        left = sorted(self._lanes, key=lambda held: held.item.seq)
        self.counts.left = len(left)
        with contextlib.suppress(BusError):  # it comes again in any case
            for held in left:
                await held.item.retry()

    # ── one event after the other ────────────────────────────────────────────────────────

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
            self._news.set()

    async def _next(self) -> QueuedEvent[Delivery] | None:
        """The next event to be sent, once there is one; None when it is time to stop."""
        clock = asyncio.get_running_loop().time
        while not self._stopping.is_set():
            if held := self._lanes.next(clock()):
                return held
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._lanes.wait(clock())):
                    await self._news.wait()
        return None

    async def _judge(self, held: QueuedEvent[Delivery], answer: WebhookResponse) -> None:
        if answer.verdict is Outcome.TAKEN:
            self.counts.delivered += 1
            await self._done(held, answered=True)
            return
        if answer.verdict is Outcome.REFUSED:
            await self._bury(held, answer.reason)
            await self._done(held, answered=True)
            return
        self.counts.retried += 1
        if held.failures + 1 >= self._config.max_attempts:
            await self._bury(held, answer.reason)
            await self._done(held, answered=False)
            return
        was_out = self._lanes.out
        at = asyncio.get_running_loop().time()
        chance = random.random()  # noqa: S311, it spreads load
        self._lanes.failed(held, at, chance, answer.retry_after)
        if self._lanes.out and not was_out:
            self._out_since = at
            self._say("outage", f"{shown(self._config.url)} takes nothing: {answer.reason}")

    async def _done(self, held: QueuedEvent[Delivery], *, answered: bool) -> None:
        """Acknowledge, and only then let the instance's next event go."""
        with contextlib.suppress(BusError):  # it comes again, and is known to be handled
            await held.item.ack()
        was_out = self._lanes.out
        self._lanes.settled(held, succeeded=answered)
        if was_out and not self._lanes.out:
            seconds = asyncio.get_running_loop().time() - self._out_since
            self._say(
                "recovered", f"{shown(self._config.url)} answers again, after {seconds:.1f} s"
            )

    async def _bury(self, held: QueuedEvent[Delivery], reason: str) -> None:
        """Return when it is stored as a dead letter, however long that takes."""
        delivery = held.item
        headers = dead_headers(
            delivery.headers,
            reason=reason,
            attempts=held.failures + 1,
            seq=delivery.seq,
            durable=self._config.durable,
        )
        letter = OutgoingMessage(
            subject=self._dead,
            data=delivery.data,
            headers=headers,
            key=delivery.event.instance_id,
            at=now(),
        )
        await self._letters.publish([letter])
        self.counts.dead += 1
        event = delivery.event
        said = f"{event.instance_id} {event.to_state} (stream sequence {delivery.seq})"
        self._say("dead_letter", f"{said}, to {self._dead}: {headers['Box-Dead-Reason']}")

    def _say(self, what: str, text: str) -> None:
        counts = Counts(**{name: getattr(self.counts, name) for name in Counts.__struct_fields__})
        self._tell(Notice(what=what, at=now(), text=text, counts=counts))  # type: ignore[arg-type]
