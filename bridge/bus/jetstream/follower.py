"""Following a stream: what is there, then what comes, with no gap between or after.

nats-py's ordered consumer and `kv.watch` lose messages silently when slow and never notice a
stream that was wiped. `Follower` makes the push consumer itself and trusts only what proves
itself: consecutive consumer sequences, and heartbeats that name the last one. A gap, a
heartbeat that disagrees, 2.2 s of silence or a reconnect starts a fresh consumer; what the sink
had stands until the new one has caught up.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal, Protocol

import nats.errors
from msgspec import Struct
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, StreamInfo
from nats.nuid import NUID

from bridge.bus.core.connection import Connection, Listener
from bridge.bus.core.message import Message
from bridge.bus.jetstream.ack_subject import parse_position
from bridge.bus.jetstream.api import jetstream
from bridge.errors import BusError, NotPermitted, StoreUnsuitable

_log = logging.getLogger(__name__)

_HEARTBEAT: Final = 1.0  # seconds between idle heartbeats
_BRISK: Final = 0.1  # seconds, for who waits for the end: the shortest that servers take
_SILENCE: Final = 2.2  # seconds without message or heartbeat: two were missed
_CHECK: Final = 0.25  # seconds between looks at the silence
_RETRY: Final = 0.25  # seconds before another try to make the consumer
_CONTROL: Final = 100  # the inline status of heartbeats and flow control


class Sink(Protocol):
    """Where a Follower delivers. Called in the read loop: nothing here may block."""

    def begin(self) -> None:
        """A fresh run starts. When following from a snapshot, all of it comes again."""

    def take(self, message: Message, seq: int, time_ns: int) -> None:
        """A message, its stream sequence and its time by the server's clock."""

    def complete(self, last_seq: int) -> None:
        """All that was stored when the run began has been taken: current from here on.

        `last_seq` is the stream's last sequence then.
        """

    def lost(self) -> None:
        """No longer current, until the next `complete`."""


class Start(enum.Enum):
    """Where a reader begins. But for a SNAPSHOT, later runs go on where the last one ended."""

    SNAPSHOT = "the last message of each subject, again in each run"
    NOW = "the next message to be stored"
    FIRST = "the first message that is kept"


class Checkpoint(Struct, frozen=True, kw_only=True):
    """How far a reader has come: the stream sequence `position`, in the stream that was made at
    `created`. Two streams of one name and age differ by that, whatever their sequences.
    """

    position: int
    created: datetime


Begin = Start | int | datetime | Checkpoint
"""Where a reader begins; an int is the sequence of the first message to come, a time that of the
oldest, a checkpoint what has been read already.
"""


class Reset(Struct, frozen=True, kw_only=True):
    """The stream is not what it was: sequence `expected` should have come next, and reading goes on
    with `next`.

    `trimmed`: those from `expected` to `next` - 1 are no longer kept (where a reader filters, they
    may all have been others' messages). `recreated`: the stream was made anew, or has lost its end,
    and is read from its start; what it held from `expected` on is not known.
    """

    reason: Literal["trimmed", "recreated"]
    expected: int
    next: int


def find_reset(position: int, created: datetime | None, info: StreamInfo) -> Reset | None:
    """What became of a stream that was read up to `position`, if that is not simply more.

    `created` is when the stream was made that was read, None if that is not known.
    """
    first, last = max(info.state.first_seq, 1), info.state.last_seq
    if (created is not None and info.created != created) or last < position:
        return Reset(reason="recreated", expected=position + 1, next=first)
    if first > position + 1:
        return Reset(reason="trimmed", expected=position + 1, next=first)
    return None


def begin_at(start: Begin) -> dict[str, Any]:
    """The settings of a consumer that begins there (for the bus package)."""
    if isinstance(start, Checkpoint):
        start = start.position + 1
    if isinstance(start, int):
        policy = DeliverPolicy.BY_START_SEQUENCE
        return {"deliver_policy": policy, "opt_start_seq": max(start, 1)}
    if isinstance(start, datetime):
        return {
            "deliver_policy": DeliverPolicy.BY_START_TIME,
            "opt_start_time": start.astimezone(UTC),
        }
    return {"deliver_policy": DeliverPolicy.NEW if start is Start.NOW else DeliverPolicy.ALL}


def filters(subjects: Sequence[str]) -> dict[str, Any]:
    """The settings of a consumer that sees only these subjects (for the bus package)."""
    if len(subjects) == 1:
        return {"filter_subject": subjects[0]}
    return {"filter_subjects": list(subjects)}


class Follower:
    """Feeds `sink` from `stream` for as long as `run` runs. See the module.

    `began_ns` is when the current run began, by the clock that stamps the messages;
    `current_until`, by the own monotonic clock, when the last run that was complete proved itself
    for the last time.

    `subjects` filter. But for a SNAPSHOT, a stream that was re-created, or has lost its end (its
    last sequence lies below the last one taken), is followed from its start, and `on_reset` is told
    so, as it is of messages that are no longer kept. `once`: for who wants only what is there, and
    learns a tenth of a second after the last message on the subjects that it was the last.
    """

    def __init__(
        self,
        connection: Connection,
        stream: str,
        sink: Sink,
        *,
        start: Begin = Start.SNAPSHOT,
        subjects: Sequence[str] = (">",),
        on_reset: Callable[[Reset], None] = lambda reset: None,
        once: bool = False,
    ) -> None:
        self.stream = stream
        self.began_ns = 0
        self.current_until = time.monotonic()
        self.created: datetime | None = None
        self._connection = connection
        self._sink = sink
        self._start = start
        self._subjects = subjects
        self._on_reset = on_reset
        self._heartbeat = _BRISK if once else _HEARTBEAT
        self._position: int | None = None
        if isinstance(start, int):
            self._position = start - 1
        elif isinstance(start, Checkpoint):
            self._position, self.created = start.position, start.created
        self._run: _Run | None = None
        self._broken = asyncio.Event()
        self._free = asyncio.Event()
        self._free.set()

    @property
    def position(self) -> int:
        """All up to this stream sequence was taken, or is not on the subjects."""
        return (self._run.highest if self._run else 0) or self._position or 0

    def hold(self) -> None:
        """Take nothing more until `release`; then what follows the last message taken."""
        self._free.clear()
        self._broken.set()

    def release(self) -> None:
        """Go on after `hold`."""
        self._free.set()

    async def run(self) -> None:
        """Follow until cancelled. Raises StoreUnsuitable where this user may not."""
        unwatch = self._connection.watch(self._on_connection)
        try:
            while True:
                await self._free.wait()
                await self._connection.wait_connected()
                self._broken.clear()
                self._run = run = _Run(self._connection, self._sink, self._broken)
                try:
                    await self._begin(run)
                    await self._until_broken(run)
                    if self._free.is_set():
                        self._connection.metrics.count("resync")
                except StoreUnsuitable:
                    raise
                except BusError as exc:
                    _log.debug("following %s: %s", self.stream, exc)
                    await asyncio.sleep(_RETRY)
                finally:
                    run.over = True
                    self._position = run.highest or self._position
                    self.current_until = run.current_until or self.current_until
                    self._run = None
                    self._sink.lost()
                    if run.listener is not None:
                        await run.listener.close()
        finally:
            unwatch()

    def _on_connection(self, up: bool) -> None:
        self._broken.set()  # up or down, what the consumer sent in between is gone

    async def _begin(self, run: _Run) -> None:
        connection = self._connection
        inbox = connection.new_inbox()
        js = jetstream(connection)
        try:
            if self._start is not Start.SNAPSHOT:
                self._locate(await js.stream_info(self.stream))
                run.highest = self._position or 0
            run.listener = await connection.listen(inbox, run.handle)
            self._sink.begin()
            made = await js.add_consumer(self.stream, self._config(inbox, run.name))
            self.began_ns = int(made.created.timestamp() * 1e9)
            # Read after the consumer exists: all up to here comes through it.
            state = (await js.stream_info(self.stream)).state
        except NotPermitted as exc:
            raise StoreUnsuitable(f"stream {self.stream} cannot be followed: {exc}") from exc
        except nats.errors.Error as exc:
            raise BusError(f"{self.stream}: {exc}") from exc
        run.target(state.last_seq, empty=not state.messages)

    def _locate(self, info: StreamInfo) -> None:
        """Where to go on, and what is missing there."""
        first, last = max(info.state.first_seq, 1), info.state.last_seq
        before, self.created = self.created, info.created
        if self._position is None and isinstance(self._start, Start):
            self._position = last if self._start is Start.NOW else first - 1
        if self._position is None:
            return
        reset = find_reset(self._position, before, info)
        if reset is not None:
            self._position = reset.next - 1
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
        """Nothing was taken yet of what is read from a time on, else the position is known."""
        if self._position is None:
            return begin_at(self._start)
        return begin_at(self._position + 1)

    async def _until_broken(self, run: _Run) -> None:
        """Return when the run can no longer be trusted to be complete."""
        while not self._broken.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CHECK):
                    await self._broken.wait()
            if run.silence() > _SILENCE:
                # Our own loop may have stalled: give what lies in the socket a chance.
                await asyncio.sleep(_CHECK)
                if run.silence() > _SILENCE:
                    return


class _Run:
    """One consumer's life: checks each message against the one before."""

    def __init__(self, connection: Connection, sink: Sink, broken: asyncio.Event) -> None:
        self.name = NUID().next().decode()
        self.listener: Listener | None = None
        self.over = False
        self.highest = 0
        self._connection = connection
        self._sink = sink
        self._broken = broken
        self._received = 0
        self._last: int | None = None
        self._complete = False
        self._began = self._heard = time.monotonic()
        self._alike = ""

    def silence(self) -> float:
        return time.monotonic() - self._heard

    @property
    def current_until(self) -> float:
        """When the run, once complete, was last heard of; 0 if it never was complete."""
        return self._heard if self._complete else 0.0

    def target(self, last: int, *, empty: bool) -> None:
        """All up to the stream sequence `last` must come before the run is complete."""
        self._heard = time.monotonic()
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
        self._heard = time.monotonic()
        stream_seq, consumer_seq, time_ns = position
        if consumer_seq != self._received + 1:
            self._broken.set()
            return
        self._received = consumer_seq
        self.highest = stream_seq
        self._sink.take(message, stream_seq, time_ns)
        if not self._complete and self._last is not None and stream_seq >= self._last:
            self._finish()

    def _locate(self, reply: str) -> tuple[int, int, int] | None:
        """The stream sequence, the consumer sequence and the time that `reply` names; None if it is
        not this consumer's.

        All replies of one consumer begin alike: what `parse_position` has found right once is only
        compared after that. Reading an event costs a tenth less for it.
        """
        alike = self._alike
        if alike and reply.startswith(alike):
            parts = reply[len(alike) :].split(".", 3)
            if len(parts) == 4:
                stream, consumer, ns, _ = parts
                if (stream + consumer + ns).isdigit() and stream and consumer and ns:
                    return int(stream), int(consumer), int(ns)
        position = parse_position(reply)
        if position is None or position.consumer != self.name:
            return None
        self._alike = reply[: reply.index(f".{self.name}.")] + f".{self.name}.1."
        return position.stream_seq, position.consumer_seq, position.time_ns

    def _control(self, message: Message) -> None:
        """Idle heartbeats and flow control, which the server waits to have answered."""
        self._heard = time.monotonic()
        stalled = message.headers.get("Nats-Consumer-Stalled", "")
        with contextlib.suppress(BusError):
            if answer := message.reply or stalled:
                self._connection.publish(answer)
        last = message.headers.get("Nats-Last-Consumer", "")
        if not last.isdigit():
            return
        if int(last) != self._received:
            self._broken.set()
        elif not stalled:
            passed = message.headers.get("Nats-Last-Stream", "")
            self.highest = max(self.highest, int(passed) if passed.isdigit() else 0)
            # Idle, and nothing missing: there is nothing more to come, unless the server that has
            # the consumer is a moment behind the stream's leader.
            if self.highest >= (self._last or 0) or self._heard - self._began > _HEARTBEAT:
                self._finish()

    def _finish(self) -> None:
        if not self._complete and self._last is not None:
            self._complete = True
            self.highest = max(self.highest, self._last)
            self._sink.complete(self._last)
