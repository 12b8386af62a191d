"""Pulling from a stream under a durable name: the server remembers which messages were handled.

Several workers may pull under one name; each message goes to one of them at a time. A worker
requests as many messages as it has `room` for, one request at a time. It requests again at once
after a reconnect, after silence (the server sends a heartbeat each second), and when the server
ends a request. The durable is created again if it, or its stream, was deleted or lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Final, Protocol

import nats.js.errors
from msgspec.structs import replace
from nats.js.api import AckPolicy, ConsumerConfig, ConsumerInfo, StreamInfo

from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.jetstream.ack_subject import AckSubject, parse_position
from bridge.bus.jetstream.api import api_subject, jetstream, jetstream_errors
from bridge.bus.jetstream.start_position import (
    Begin,
    Checkpoint,
    Reset,
    begin_at,
    filters,
    find_reset,
)
from bridge.errors import BusError, DurableMismatch, StoreUnsuitable

_log = logging.getLogger(__name__)

LOOK: Final = 2.0  # seconds between looks at the progress of all workers

_HEARTBEAT: Final = 1.0  # seconds between the server's heartbeats
_SILENCE: Final = 2.2  # seconds without message or heartbeat: two heartbeats are missing
_CHECK: Final = 0.25  # seconds between checks for silence
_RETRY: Final = 0.25  # seconds before the next attempt to open the durable
_EXPIRES: Final = 30.0  # seconds that a request for messages lasts
_MAX_PENDING: Final = 10_000  # unacknowledged messages of all workers together
_NS: Final = 1_000_000_000


class PullHandler(Protocol):
    """A worker that messages are pulled for. Called in the read loop: no method may block."""

    def room(self) -> int:
        """How many more messages the worker accepts now."""

    def take(self, message: Message, position: AckSubject) -> None:
        """Take a message, which is to be answered on its reply subject."""

    def reset(self, reset: Reset) -> None:
        """Take the report that messages are missing, or that the stream was re-created."""

    def tick(self) -> None:
        """Called every 0.25 s, to release messages whose time is over."""

    def set_backlog(self, count: int) -> None:
        """Take the number of messages that no worker has handled, after each look."""


class PullConsumer:
    """Gives messages to `handler` while `run` runs. See the module.

    A durable that does not exist yet begins at `start`. The server delivers a message again after
    `ack_wait` seconds without an answer. `look` is the pause between looks at the progress of all
    workers, in seconds. `ready` is set once the durable is open.
    """

    def __init__(
        self,
        connection: Connection,
        stream: str,
        name: str,
        handler: PullHandler,
        *,
        subjects: Sequence[str],
        start: Begin,
        ack_wait: float,
        look: float = LOOK,
    ) -> None:
        self.stream = stream
        self.name = name
        self.ready = asyncio.Event()
        self._connection = connection
        self._handler = handler
        self._subjects = subjects
        self._start = start
        self._ack_wait = ack_wait
        self._look_every = look
        self._created: datetime | None = None
        self._floor: int | None = None
        self._taken = 0
        self._broken = asyncio.Event()
        self._inbox = ""
        self._requested = 0
        self._last_activity = 0.0

    async def run(self) -> None:
        """Pull until cancelled.

        Raises StoreUnsuitable if this NATS user may not, and never could; DurableMismatch if a
        durable of this name has other settings.
        """
        unwatch = self._connection.watch(lambda up: self._broken.set())
        try:
            while True:
                await self._connection.wait_connected()
                self._broken.clear()
                try:
                    await self._open()
                    self.ready.set()
                    await self._pull()
                    self._connection.metrics.count("resync")
                    await asyncio.sleep(_RETRY)  # no busy loop against a server that refuses
                except DurableMismatch:
                    raise
                except BusError as exc:
                    if isinstance(exc, StoreUnsuitable) and not self.ready.is_set():
                        raise
                    _log.debug("durable %s on %s: %s", self.name, self.stream, exc)
                    await asyncio.sleep(_RETRY)
        finally:
            unwatch()

    def request(self) -> None:
        """Request as many messages as there is room for, unless a request is still open."""
        if not self._inbox or self._requested or self._broken.is_set():
            return
        if (room := self._handler.room()) < 1:
            return
        body = {
            "batch": room,
            "expires": int(_EXPIRES * _NS),
            "idle_heartbeat": int(_HEARTBEAT * _NS),
        }
        call = f"CONSUMER.MSG.NEXT.{self.stream}.{self.name}"
        subject = api_subject(self._connection, call)
        try:
            self._connection.publish(subject, json.dumps(body).encode(), reply=self._inbox)
        except BusError:
            self._broken.set()
            return
        self._requested = room
        self._last_activity = time.monotonic()

    # ── the durable ──────────────────────────────────────────────────────────────────────

    async def _open(self) -> None:
        """Create the durable if it is missing, and report missing messages."""
        js = jetstream(self._connection)
        with jetstream_errors(
            f"{self.stream}: durable {self.name}", denied=f"durable {self.name} cannot be used"
        ):
            durable = await self._find()
            info = await js.stream_info(self.stream)  # after the durable: it cannot be ahead of it
            if durable is not None and (taken := _delivered(durable)) > info.state.last_seq:
                self._floor = taken  # the stream has lost its end
                await js.delete_consumer(self.stream, self.name)
                durable = None
            reset = self._find_reset(durable, info)
            if durable is None:
                durable = await js.add_consumer(self.stream, self._config(reset))
            elif durable.config.ack_wait != self._ack_wait:
                # Without its name nats-py sends DURABLE.CREATE, the one call that a durable may.
                wanted = durable.config.evolve(ack_wait=self._ack_wait, name=None)
                durable = await js.add_consumer(self.stream, wanted)
        self._created = info.created
        self._floor = _floor(durable)
        if reset is not None:
            self._taken = 0
            self._handler.reset(reset)
        self._handler.set_backlog(_backlog(durable))

    async def _find(self) -> ConsumerInfo | None:
        """The durable, if it exists. Raises DurableMismatch if it has other settings."""
        js = jetstream(self._connection)
        try:
            info: ConsumerInfo = await js.consumer_info(self.stream, self.name)
        except nats.js.errors.NotFoundError:
            return None
        config = info.config
        subjects = sorted(config.filter_subjects or [config.filter_subject or ">"])
        if config.deliver_subject or config.ack_policy != AckPolicy.EXPLICIT:
            raise DurableMismatch(self.name, "it is not a pull consumer with explicit acks")
        if subjects != sorted(self._subjects):
            raise DurableMismatch(
                self.name, f"it reads {', '.join(subjects)}, not {', '.join(self._subjects)}"
            )
        return info

    def _find_reset(self, durable: ConsumerInfo | None, info: StreamInfo) -> Reset | None:
        """The missing messages, by the progress that this process or the durable remembers."""
        floor, created = self._floor, self._created
        if durable is not None:
            floor = max(floor or 0, _floor(durable))
        elif floor is None and isinstance(self._start, int):
            floor = self._start - 1
        elif floor is None and isinstance(self._start, Checkpoint):
            floor, created = self._start.position, self._start.created
        if self._taken > info.state.last_seq:
            floor = self._taken  # the stream has lost its end
        reset = None if floor is None else find_reset(floor, created, info)
        if durable is not None and reset is not None and reset.reason == "recreated":
            return replace(reset, next=_floor(durable) + 1)  # another worker created it first
        return reset

    def _config(self, reset: Reset | None) -> ConsumerConfig:
        start = self._start
        if reset is not None:
            start = reset.next
        elif self._floor is not None:
            start = self._floor + 1  # it was deleted: continue after what all workers had handled
        return ConsumerConfig(
            durable_name=self.name,
            **filters(self._subjects),
            **begin_at(start),
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=self._ack_wait,
            max_ack_pending=_MAX_PENDING,
        )

    # ── pulling ──────────────────────────────────────────────────────────────────────────

    async def _pull(self) -> None:
        """Return when messages may no longer arrive."""
        self._requested = 0
        self._inbox = self._connection.new_inbox()
        listener = await self._connection.listen(self._inbox, self._handle)
        last_look = time.monotonic()
        try:
            self.request()
            while not self._broken.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_CHECK):
                        await self._broken.wait()
                self._handler.tick()
                if self._requested and time.monotonic() - self._last_activity > _SILENCE:
                    return
                if time.monotonic() - last_look > self._look_every:
                    last_look = time.monotonic()
                    await self._look()
        finally:
            self._inbox = ""
            await listener.close()

    async def _look(self) -> None:
        """Read the progress of all workers, which a durable that is created again starts from."""
        with jetstream_errors(self.name):
            info = await jetstream(self._connection).consumer_info(self.stream, self.name)
        self._floor = max(self._floor or 0, _floor(info))
        self._handler.set_backlog(_backlog(info))

    def _handle(self, message: Message) -> None:
        self._last_activity = time.monotonic()
        if message.status and not message.data:
            self._control(message)
            return
        position = parse_position(message.reply)
        if position is None or position.consumer != self.name:
            self._connection.metrics.refuse("stream", "not from the consumer")
            return
        self._requested = max(0, self._requested - 1)
        self._taken = max(self._taken, position.stream_seq)
        self._handler.take(message, position)
        self.request()

    def _control(self, message: Message) -> None:
        """100 is a heartbeat, 408 the end of the request; any other reopens the durable."""
        if message.status == 408:
            self._requested = 0
            self.request()
        elif message.status != 100:
            self._broken.set()


def _floor(info: ConsumerInfo) -> int:
    """The stream sequence up to which every message was handled."""
    return info.ack_floor.stream_seq if info.ack_floor else 0


def _delivered(info: ConsumerInfo) -> int:
    """The highest stream sequence that was delivered to a worker."""
    return info.delivered.stream_seq if info.delivered else 0


def _backlog(info: ConsumerInfo) -> int:
    return (info.num_pending or 0) + (info.num_ack_pending or 0)


async def outstanding(connection: Connection, stream: str, name: str) -> int:
    """How many delivered messages of the durable are unanswered; 0 if it does not exist.

    Raises StoreUnsuitable if this NATS user may not read that, and BusError for an outage.
    """
    with jetstream_errors(
        f"{stream}: durable {name}", denied=f"durable {name} cannot be inspected"
    ):
        try:
            return (await jetstream(connection).consumer_info(stream, name)).num_ack_pending or 0
        except nats.js.errors.NotFoundError:
            return 0
