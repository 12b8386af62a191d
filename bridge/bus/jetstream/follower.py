"""Following a stream: its stored messages, then each new one, without a gap.

nats-py's ordered consumer and `kv.watch` lose messages silently when the reader is slow, and do not
notice a stream that was wiped. `Follower` creates the push consumer itself and checks each message:
consumer sequences must be consecutive, and a heartbeat must name the last one. A gap, a heartbeat
that disagrees, 2.2 s of silence or a reconnect starts a new run with a fresh consumer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final

from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, StreamInfo
from nats.nuid import NUID

from bridge.bus.core.connection import Connection
from bridge.bus.core.listener import Listener
from bridge.bus.core.message import Message
from bridge.bus.jetstream.ack_subject import parse_position
from bridge.bus.jetstream.api import jetstream, jetstream_errors
from bridge.bus.jetstream.start_position import (
    Begin,
    Checkpoint,
    Reset,
    Start,
    begin_at,
    filters,
    find_reset,
)
from bridge.errors import BusError, StoreUnsuitable

_log = logging.getLogger(__name__)

_HEARTBEAT: Final = 1.0  # seconds between idle heartbeats
_HEARTBEAT_ONCE: Final = 0.1  # seconds, for `once`: the shortest that nats-server accepts
_SILENCE: Final = 2.2  # seconds without message or heartbeat: two heartbeats are missing
_CHECK: Final = 0.25  # seconds between checks for silence
_RETRY: Final = 0.25  # seconds before the next attempt to create the consumer
_CONTROL: Final = 100  # the inline status of heartbeats and flow control


Take = Callable[[Message, int, int], None]
"""Called in the read loop with a message, its stream sequence and its time by the server's clock in
nanoseconds. It must not block.
"""


class Follower:
    """Gives each message of `stream` on `subjects` to `take` while `run` runs. See the module.

    `live` is set while everything stored when the current run began has been taken. From a SNAPSHOT
    the last message of each subject comes again in each run. From any other start a stream that was
    re-created, or has lost its end (its last sequence lies below the last one taken), is read from
    its start; `on_reset` gets that, and messages that the stream no longer keeps.

    `on_begin` is called when a run begins, `on_complete` with the stream's last sequence just
    before `live` is set, and `on_lost` when a run ends. `once` is for a reader of the stored
    messages alone: it learns within 0.1 s that it has the last one.

    `start_ns` is when the current run began, by the clock that stamps the messages. `current_until`
    is when the last complete run was last known to be current, by the monotonic clock.
    """

    def __init__(
        self,
        connection: Connection,
        stream: str,
        take: Take,
        *,
        start: Begin = Start.SNAPSHOT,
        subjects: Sequence[str] = (">",),
        on_begin: Callable[[], None] | None = None,
        on_complete: Callable[[int], None] | None = None,
        on_lost: Callable[[], None] | None = None,
        on_reset: Callable[[Reset], None] | None = None,
        once: bool = False,
    ) -> None:
        self.stream = stream
        self.live = asyncio.Event()
        self.start_ns = 0
        self.current_until = time.monotonic()
        self.created: datetime | None = None
        self._connection = connection
        self._take = take
        self._on_begin = on_begin
        self._on_complete = on_complete
        self._on_lost = on_lost
        self._start = start
        self._subjects = subjects
        self._on_reset = on_reset
        self._heartbeat = _HEARTBEAT_ONCE if once else _HEARTBEAT
        self._position: int | None = None
        if isinstance(start, int):
            self._position = start - 1
        elif isinstance(start, Checkpoint):
            self._position, self.created = start.position, start.created
        self._run: _Run | None = None
        self._once_live = False
        self._broken = asyncio.Event()
        self._free = asyncio.Event()
        self._free.set()

    @property
    def position(self) -> int:
        """The stream sequence up to which every message on the subjects was taken."""
        return (self._run.highest if self._run else 0) or self._position or 0

    def hold(self) -> None:
        """Pause until `release`, then continue after the last message taken."""
        self._free.clear()
        self._broken.set()

    def release(self) -> None:
        """Continue after `hold`."""
        self._free.set()

    async def run(self) -> None:
        """Follow until cancelled.

        Raises StoreUnsuitable if this NATS user may not follow and never could: a permission that
        is taken away later may come back.
        """
        unwatch = self._connection.watch(self._on_connection)
        try:
            while True:
                await self._free.wait()
                await self._connection.wait_connected()
                self._broken.clear()
                self._run = run = _Run(self._connection, self._take, self._complete, self._broken)
                try:
                    await self._begin(run)
                    await self._until_broken(run)
                    if self._free.is_set():
                        self._connection.metrics.count("resync")
                except BusError as exc:
                    if isinstance(exc, StoreUnsuitable) and not self._once_live:
                        raise
                    _log.debug("following %s: %s", self.stream, exc)
                    await asyncio.sleep(_RETRY)
                finally:
                    run.over = True
                    self._position = run.highest or self._position
                    self.current_until = run.current_until or self.current_until
                    self._run = None
                    self.live.clear()
                    if self._on_lost is not None:
                        self._on_lost()
                    if run.listener is not None:
                        await run.listener.close()
        finally:
            unwatch()

    def _on_connection(self, up: bool) -> None:
        self._broken.set()  # up or down, messages that the consumer sent in between are lost

    def _complete(self, last_seq: int) -> None:
        if self._on_complete is not None:
            self._on_complete(last_seq)
        self._once_live = True
        self.live.set()

    async def _begin(self, run: _Run) -> None:
        connection = self._connection
        inbox = connection.new_inbox()
        js, denied = jetstream(connection), f"stream {self.stream} cannot be followed"
        if self._start is not Start.SNAPSHOT:
            with jetstream_errors(self.stream, denied=denied):
                info = await js.stream_info(self.stream)
            self._locate(info)
            run.highest = self._position or 0
        run.listener = await connection.listen(inbox, run.handle)
        if self._on_begin is not None:
            self._on_begin()
        with jetstream_errors(self.stream, denied=denied):
            made = await js.add_consumer(self.stream, self._config(inbox, run.name))
            self.start_ns = int(made.created.timestamp() * 1e9)
            # Read after the consumer exists: every message up to here comes through it.
            state = (await js.stream_info(self.stream)).state
        run.target(state.last_seq, empty=not state.messages)

    def _locate(self, info: StreamInfo) -> None:
        """Set the position to continue from, and report missing messages."""
        first, last = max(info.state.first_seq, 1), info.state.last_seq
        before, self.created = self.created, info.created
        if self._position is None and isinstance(self._start, Start):
            self._position = last if self._start is Start.NOW else first - 1
        if self._position is None:
            return
        reset = find_reset(self._position, before, info)
        if reset is not None:
            self._position = reset.next - 1
            if self._on_reset is not None:
                self._on_reset(reset)

    def _config(self, inbox: str, name: str) -> ConsumerConfig:
        snapshot = self._start is Start.SNAPSHOT
        return ConsumerConfig(
            name=name,
            deliver_subject=inbox,
            **filters(self._subjects),
            **({"deliver_policy": DeliverPolicy.LAST_PER_SUBJECT} if snapshot else self._from()),
            ack_policy=AckPolicy.NONE,
            max_deliver=1,
            flow_control=True,
            idle_heartbeat=self._heartbeat,
            mem_storage=True,
            num_replicas=1,
            inactive_threshold=10.0,
        )

    def _from(self) -> dict[str, Any]:
        """The position is unknown only for a start by time of which nothing was taken yet."""
        if self._position is None:
            return begin_at(self._start)
        return begin_at(self._position + 1)

    async def _until_broken(self, run: _Run) -> None:
        """Return when messages of the run may be missing."""
        while not self._broken.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CHECK):
                    await self._broken.wait()
            if run.silence() > _SILENCE:
                # This event loop may have stalled: read first what lies in the socket.
                await asyncio.sleep(_CHECK)
                if run.silence() > _SILENCE:
                    return


class _Run:
    """One consumer. Each message is checked against the one before; a mismatch sets `broken`."""

    def __init__(
        self,
        connection: Connection,
        take: Take,
        complete: Callable[[int], None],
        broken: asyncio.Event,
    ) -> None:
        self.name = NUID().next().decode()
        self.listener: Listener | None = None
        self.over = False
        self.highest = 0
        self._connection = connection
        self._take = take
        self._on_complete = complete
        self._broken = broken
        self._consumer_seq = 0
        self._last: int | None = None
        self._complete = False
        self._start = self._last_activity = time.monotonic()
        self._prefix = ""

    def silence(self) -> float:
        """Seconds since the last message or heartbeat."""
        return time.monotonic() - self._last_activity

    @property
    def current_until(self) -> float:
        """When the last message or heartbeat of a complete run came; 0 if it is not complete."""
        return self._last_activity if self._complete else 0.0

    def target(self, last: int, *, empty: bool) -> None:
        """The run is complete once every message up to stream sequence `last` has come."""
        self._last_activity = time.monotonic()
        self._last = last
        if empty or self.highest >= last:
            self._finish()

    def handle(self, message: Message) -> None:
        if self.over or self._broken.is_set():
            return
        if not message.data and message.status == _CONTROL:
            self._control(message)
            return
        position = self._locate(message.reply)
        if position is None:
            self._connection.metrics.refuse("stream", "not from the consumer")
            return
        self._last_activity = time.monotonic()
        stream_seq, consumer_seq, time_ns = position
        if consumer_seq != self._consumer_seq + 1:
            self._broken.set()
            return
        self._consumer_seq = consumer_seq
        self.highest = stream_seq
        self._take(message, stream_seq, time_ns)
        if not self._complete and self._last is not None and stream_seq >= self._last:
            self._finish()

    def _locate(self, reply: str) -> tuple[int, int, int] | None:
        """The stream sequence, the consumer sequence and the time that `reply` names; None if it is
        not this consumer's.

        All replies of one consumer have the same prefix. `parse_position` checks it once, later
        replies are compared with it: that takes a tenth off the cost of reading an event.
        """
        prefix = self._prefix
        if prefix and reply.startswith(prefix):
            parts = reply[len(prefix) :].split(".", 3)
            if len(parts) == 4:
                stream, consumer, ns, _ = parts
                if (stream + consumer + ns).isdigit() and stream and consumer and ns:
                    return int(stream), int(consumer), int(ns)
        position = parse_position(reply)
        if position is None or position.consumer != self.name:
            return None
        self._prefix = reply[: reply.index(f".{self.name}.")] + f".{self.name}.1."
        return position.stream_seq, position.consumer_seq, position.time_ns

    def _control(self, message: Message) -> None:
        """An idle heartbeat or a flow control message, which the server waits for an answer to."""
        self._last_activity = time.monotonic()
        stalled = message.headers.get("Nats-Consumer-Stalled", "")
        with contextlib.suppress(BusError):
            if answer := message.reply or stalled:
                self._connection.publish(answer)
        last = message.headers.get("Nats-Last-Consumer", "")
        if not last.isdigit():
            return
        if int(last) != self._consumer_seq:
            self._broken.set()
        elif not stalled:
            delivered = message.headers.get("Nats-Last-Stream", "")
            self.highest = max(self.highest, int(delivered) if delivered.isdigit() else 0)
            # Idle and without a gap: nothing more is stored, unless the consumer's server is a
            # moment behind the stream's leader.
            if self.highest >= (self._last or 0) or self._last_activity - self._start > _HEARTBEAT:
                self._finish()

    def _finish(self) -> None:
        if not self._complete and self._last is not None:
            self._complete = True
            self.highest = max(self.highest, self._last)
            self._on_complete(self._last)
