"""Pulling from a stream under a durable name, so that the server remembers what was handled.

Several workers may pull under one name; each message goes to one of them at a time. What a worker
holds is bounded by `room`: it asks for no more than that, one request at a time, and asks again at
once after a reconnect, after silence (the server says once a second that it is there), and when
the server ends a request. The durable is made again when it, or its stream, was deleted or lost.
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

import nats.errors
import nats.js.errors
from msgspec.structs import replace
from nats.js.api import AckPolicy, ConsumerConfig, ConsumerInfo, StreamInfo

from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.jetstream.ack_subject import AckSubject, parse_position
from bridge.bus.jetstream.api import jetstream
from bridge.bus.jetstream.follower import Begin, Checkpoint, Reset, begin_at, filters, find_reset
from bridge.bus.jetstream.publish import api_subject, mapped
from bridge.errors import BusError, DurableMismatch, NotPermitted, StoreUnsuitable

_log = logging.getLogger(__name__)

_HEARTBEAT: Final = 1.0  # seconds between the server's signs of life
_SILENCE: Final = 2.2  # seconds without message or sign: two were missed
_CHECK: Final = 0.25  # seconds between looks at the silence
_RETRY: Final = 0.25  # seconds before another try to get at the durable
_EXPIRES: Final = 30.0  # seconds that a request for messages lasts
LOOK: Final = 2.0  # seconds between looks at how far all workers have come
_MAX_PENDING: Final = 10_000  # messages that all workers together may have unacknowledged
_NS: Final = 1_000_000_000


class PullHandler(Protocol):
    """Who pulls. Called in the read loop: nothing here may block."""

    def room(self) -> int:
        """How many messages it would take now."""

    def take(self, message: Message, position: AckSubject) -> None:
        """A message, to be answered on its reply subject."""

    def reset(self, reset: Reset) -> None:
        """Messages were missed, or the stream is another one."""

    def tick(self) -> None:
        """Called every 0.25 s, for what has run out."""

    def looked(self, unhandled: int) -> None:
        """How many messages no worker has handled yet, now and then."""


class PullConsumer:
    """Feeds `taker` for as long as `run` runs. See the module.

    `start` is where the durable begins when there is none of this `name` yet. `ack_wait` is after
    how many seconds without an answer a message comes again. Every `look` seconds it looks at how
    far all workers have come.
    """

    def __init__(
        self,
        connection: Connection,
        stream: str,
        name: str,
        taker: PullHandler,
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
        self._taker = taker
        self._subjects = subjects
        self._start = start
        self._ack_wait = ack_wait
        self._look_every = look
        self._created: datetime | None = None
        self._floor: int | None = None
        self._taken = 0
        self._broken = asyncio.Event()
        self._inbox = ""
        self._asked = 0
        self._heard = 0.0

    async def run(self) -> None:
        """Pull until cancelled.

        Raises StoreUnsuitable where this user may not, DurableMismatch for a durable of this name
        that is another's.
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
                    await asyncio.sleep(_RETRY)  # a server that refuses must not be asked in a spin
                except (StoreUnsuitable, DurableMismatch):
                    raise
                except BusError as exc:
                    _log.debug("durable %s on %s: %s", self.name, self.stream, exc)
                    await asyncio.sleep(_RETRY)
        finally:
            unwatch()

    def ask(self) -> None:
        """Ask for as many messages as there is room for, unless some are still to come."""
        if not self._inbox or self._asked or self._broken.is_set():
            return
        if (room := self._taker.room()) < 1:
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
        self._asked = room
        self._heard = time.monotonic()

    # ── being there ──────────────────────────────────────────────────────────────────────

    async def _open(self) -> None:
        """See to it that the durable is there, and tell what became of the stream."""
        js = jetstream(self._connection)
        try:
            found = await self._found()
            info = await js.stream_info(self.stream)  # after the durable: it cannot be ahead of it
            if found is not None and (taken := _delivered(found)) > info.state.last_seq:
                self._floor = taken  # the stream has lost its end
                await js.delete_consumer(self.stream, self.name)
                found = None
            reset = self._missed(found, info)
            if found is None:
                found = await js.add_consumer(self.stream, self._config(reset))
            elif found.config.ack_wait != self._ack_wait:
                wanted = found.config.evolve(ack_wait=self._ack_wait)
                found = await js.add_consumer(self.stream, wanted)
        except NotPermitted as exc:
            raise StoreUnsuitable(f"durable {self.name} cannot be used: {exc}") from exc
        except (nats.errors.Error, TimeoutError) as exc:
            raise mapped(f"{self.stream}: durable {self.name}", exc) from exc
        self._created = info.created
        self._floor = _floor(found)
        if reset is not None:
            self._taken = 0
            self._taker.reset(reset)
        self._taker.looked(_unhandled(found))

    async def _found(self) -> ConsumerInfo | None:
        """The durable, if there is one; raises DurableMismatch where it is not one like ours."""
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

    def _missed(self, found: ConsumerInfo | None, info: StreamInfo) -> Reset | None:
        """What was missed, as far as this process or the durable knows how far it had come."""
        floor, created = self._floor, self._created
        if found is not None:
            floor = max(floor or 0, _floor(found))
        elif floor is None and isinstance(self._start, int):
            floor = self._start - 1
        elif floor is None and isinstance(self._start, Checkpoint):
            floor, created = self._start.position, self._start.created
        if self._taken > info.state.last_seq:
            floor = self._taken  # it has lost its end: what was to come next is not what comes
        reset = None if floor is None else find_reset(floor, created, info)
        if found is not None and reset is not None and reset.reason == "recreated":
            return replace(reset, next=_floor(found) + 1)  # another worker was first to make it
        return reset

    def _config(self, reset: Reset | None) -> ConsumerConfig:
        start = self._start
        if reset is not None:
            start = reset.next
        elif self._floor is not None:
            start = self._floor + 1  # it was deleted: on from what all workers had handled
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
        """Return when it is in doubt that messages would come."""
        self._asked = 0
        self._inbox = self._connection.new_inbox()
        listener = await self._connection.listen(self._inbox, self._handle)
        looked = time.monotonic()
        try:
            self.ask()
            while not self._broken.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_CHECK):
                        await self._broken.wait()
                self._taker.tick()
                if self._asked and time.monotonic() - self._heard > _SILENCE:
                    return
                if time.monotonic() - looked > self._look_every:
                    looked = time.monotonic()
                    await self._look()
        finally:
            self._inbox = ""
            await listener.close()

    async def _look(self) -> None:
        """How far all workers have come, for when the durable has to be made again."""
        try:
            info = await jetstream(self._connection).consumer_info(self.stream, self.name)
        except (nats.errors.Error, TimeoutError) as exc:
            raise mapped(self.name, exc) from exc
        self._floor = max(self._floor or 0, _floor(info))
        self._taker.looked(_unhandled(info))

    def _handle(self, message: Message) -> None:
        self._heard = time.monotonic()
        if message.status and not message.data:
            self._control(message)
            return
        position = parse_position(message.reply)
        if position is None or position.consumer != self.name:
            self._connection.metrics.refuse("stream", "not from the consumer")
            return
        self._asked = max(0, self._asked - 1)
        self._taken = max(self._taken, position.stream_seq)
        self._taker.take(message, position)
        self.ask()

    def _control(self, message: Message) -> None:
        """100 is a sign of life, 408 the end of the request; else the durable is in doubt."""
        if message.status == 408:
            self._asked = 0
            self.ask()
        elif message.status != 100:
            self._broken.set()


def _floor(info: ConsumerInfo) -> int:
    """All up to this stream sequence has been handled."""
    return info.ack_floor.stream_seq if info.ack_floor else 0


def _delivered(info: ConsumerInfo) -> int:
    """The highest stream sequence that was handed to anybody."""
    return info.delivered.stream_seq if info.delivered else 0


def _unhandled(info: ConsumerInfo) -> int:
    return (info.num_pending or 0) + (info.num_ack_pending or 0)


async def outstanding(connection: Connection, stream: str, name: str) -> int:
    """How many messages workers of the durable hold, or held when they ended; 0 if it is not there.

    Raises StoreUnsuitable where this user may not ask, and BusError for an outage.
    """
    try:
        return (await jetstream(connection).consumer_info(stream, name)).num_ack_pending or 0
    except nats.js.errors.NotFoundError:
        return 0
    except NotPermitted as exc:
        raise StoreUnsuitable(f"durable {name} cannot be looked at: {exc}") from exc
    except (nats.errors.Error, TimeoutError) as exc:
        raise mapped(f"{stream}: durable {name}", exc) from exc
