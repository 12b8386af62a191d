"""From the bus into a `RouteState`: every message checked, the snapshot in one step, the clock.

What is not as the contract says is counted (`box_bridge_refused_total`) and changes nothing. The
handlers run in the read loop: no task, no log record and no copy for a message.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from bridge.bus.core.connection import Connection, Listener
from bridge.bus.core.message import Message
from bridge.bus.jetstream.follower import Follower, Start
from bridge.errors import NameRefused, ProtocolError
from bridge.gateway.routes.index import Key, Route
from bridge.gateway.routes.instance_state import RouteCandidate
from bridge.gateway.routes.registration_reader import RegistrationReader
from bridge.gateway.routes.state import LIMIT, RouteState
from bridge.protocol import (
    InstanceEvent,
    InstanceHealth,
    decode,
)
from bridge.subjects import BOX_SEQ, is_name, last_token, parse_instance_subject
from bridge.validation import DISAGREE, check_health, read_withdrawal

_log = logging.getLogger(__name__)

_TICK: Final = 0.5  # seconds between looks at the leases, at most
_MAX_HEALTH: Final = 4 * 1024  # bytes of one instance's report
_MAX_STATS: Final = 1024 * 1024  # bytes of one host's report
_CLOCK_SLACK: Final = 10**9  # ns by which the server's clock may seem to go back
_SEQ_DIGITS: Final = 18


class _HealthVerdict(Struct, frozen=True, gc=False):
    """Of an instance's health, once a second for each in the fleet, only what routes depend on: an
    eighth of the time that all of it takes.
    """

    healthy: bool = True


_Sampled = dict[str, _HealthVerdict]


class RouteFeed:
    """Feeds `book` what concerns `services` (None: all). `changed` is called after each change.

    Raises NameRefused for a service that can have no subject.
    """

    def __init__(
        self,
        connection: Connection,
        book: RouteState,
        services: frozenset[str] | None,
        lease: float,
        changed: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.book = book
        self.services = services
        self.clock = clock
        self.metrics = connection.metrics
        self._connection = connection
        self._lease = lease
        self._changed = changed
        self._told = book.seq
        one = next(iter(services)) if services is not None and len(services) == 1 else None
        # Events first: whoever drains while the snapshot comes is heard.
        self.sources: tuple[_Events | _Registry, ...] = (
            _Events(self, connection, one),
            _Registry(self, connection, one),
        )

    async def listen(self) -> list[Listener]:
        """Take the reports on health, which nothing keeps; returns what must be closed."""
        subjects = self._connection.subjects
        return [
            await self._connection.listen(subjects.all_health, self._take_health),
            await self._connection.listen(subjects.all_stats, self._take_stats),
        ]

    async def tick(self) -> None:
        """Let time pass for the book, until cancelled."""
        pause = min(_TICK, self._lease / 10)
        while True:
            await asyncio.sleep(pause)
            kept = self.book.tick(self.clock(), live=self.live)
            if kept:
                self.metrics.count("leases_held_over")
                names = ", ".join(sorted(instance_id for _, instance_id in kept)[:5])
                _log.warning(
                    "half of all routes or more would run out at once: "
                    "%d are kept for one more lease (%s, …)",
                    len(kept),
                    names,
                )
            self.flush()

    @property
    def live(self) -> bool:
        """Whether all that is stored is heard."""
        return all(source.live.is_set() for source in self.sources)

    def stale_for(self) -> float:
        """Seconds since all that is stored was heard for the last time; 0 while it is."""
        lost = [each.follower.current_until for each in self.sources if not each.live.is_set()]
        return max(0.0, time.monotonic() - min(lost)) if lost else 0.0

    def wants(self, service: str) -> bool:
        """Whether this table holds the service."""
        return self.services is None or service in self.services

    def flush(self) -> None:
        """Tell what changed, if anything did."""
        if self.book.seq != self._told:
            self._told = self.book.seq
            self._changed()

    # ── reports on health ────────────────────────────────────────────────────────────────

    def _take_health(self, message: Message) -> None:
        try:
            _, service, instance_id = parse_instance_subject(message.subject)
        except NameRefused:
            self.metrics.refuse("health", "not a subject of the contract")
            return
        if not self.wants(service):
            return
        if len(message.data) > _MAX_HEALTH:
            self.metrics.refuse("health", "too large")
            return
        try:
            health = check_health(decode(InstanceHealth, message.data))
        except ProtocolError:
            self.metrics.refuse("health", "malformed")
            return
        self.book.report((service, instance_id), health, self.clock())
        self.flush()

    def _take_stats(self, message: Message) -> None:
        if len(message.data) > _MAX_STATS:
            self.metrics.refuse("stats", "too large")
            return
        try:
            stats = decode(_Sampled, message.data)
        except ProtocolError:
            self.metrics.refuse("stats", "malformed")
            return
        self.book.sample(last_token(message.subject), stats, self.clock())
        self.flush()


class _Registry:
    """The Follower's sink for registrations. A snapshot is taken over in one step, once complete;
    until then, and whatever it lacks, the table stays as it was.
    """

    def __init__(self, feed: RouteFeed, connection: Connection, service: str | None) -> None:
        subjects = connection.subjects
        subject = ">" if service is None else subjects.registry_of(service)
        self.live = asyncio.Event()
        self.follower = Follower(connection, subjects.registry_stream, self, subjects=[subject])
        self._feed = feed
        self._first = True
        self._snapshot: dict[Key, RouteCandidate] | None = None
        self._time_ns = 0
        self._announced = RegistrationReader()

    def begin(self) -> None:
        self._snapshot = {}
        self._time_ns = 0

    def take(self, message: Message, seq: int, time_ns: int) -> None:
        # In a stream its order is what counts, should the server's clock be set back.
        if time_ns <= self._time_ns:
            time_ns = self._time_ns + 1
        self._time_ns = time_ns
        try:
            kind, service, instance_id = parse_instance_subject(message.subject)
        except NameRefused:
            self._refuse("not a subject of the contract")
            return
        wanted = self._feed.services
        if wanted is not None and service not in wanted:
            return
        if kind == "deregister":
            self._withdraw((service, instance_id), message)
            return
        try:
            told = self._announced.read(message, service, instance_id)
        except ProtocolError:
            self._refuse("malformed")
            return
        if isinstance(told, str):
            self._refuse(told)
        elif self._snapshot is None:
            self._register(told, time_ns)
        elif len(self._snapshot) < LIMIT or told.key in self._snapshot:
            key = told.service, instance_id  # of this service there is one text
            self._snapshot[key] = RouteCandidate(key, route=told, time_ns=time_ns)
        else:
            self._refuse("no room")

    def complete(self, last_seq: int) -> None:
        book, now = self._feed.book, self._feed.clock()
        snapshot, self._snapshot = self._snapshot or {}, None
        server_ns = self.follower.began_ns
        if server_ns < book.newest_ns - _CLOCK_SLACK:
            book.forget_times()
        for _ in range(book.take_over(snapshot, server_ns, now)):
            self._refuse("no room")
        if not self._first:
            book.rearm(now)
        self._first = False
        self.live.set()
        self._feed.flush()

    def lost(self) -> None:
        self.live.clear()

    def _register(self, told: Route, time_ns: int) -> None:
        if not self._feed.book.register(told, time_ns, self._feed.clock()):
            self._refuse("no room")
        self._feed.flush()

    def _withdraw(self, key: Key, message: Message) -> None:
        gone = read_withdrawal(message.data, *key)
        if isinstance(gone, str):
            self._refuse(gone)
            return
        reason = f"deregistered: {gone.reason}" if gone.reason else "deregistered"
        self._feed.book.withdraw(key, reason, self._feed.clock())
        self._feed.flush()

    def _refuse(self, reason: str) -> None:
        self._feed.metrics.refuse("registry", reason)


class _Events:
    """The Follower's sink for events."""

    def __init__(self, feed: RouteFeed, connection: Connection, service: str | None) -> None:
        subjects = connection.subjects
        subject = subjects.all_events if service is None else subjects.events(service)
        self.live = asyncio.Event()
        self.follower = Follower(
            connection, subjects.events_stream, self, start=Start.NOW, subjects=[subject]
        )
        self._feed = feed

    def begin(self) -> None:
        """Nothing: events go on where they stopped."""

    def take(self, message: Message, seq: int, time_ns: int) -> None:
        feed = self._feed
        service = last_token(message.subject)
        if not feed.wants(service):
            return
        try:
            event = decode(InstanceEvent, message.data)
        except ProtocolError:
            feed.metrics.refuse("events", "malformed")
            return
        if event.service != service or not is_name(service):
            feed.metrics.refuse("events", DISAGREE)
            return
        box_seq = message.headers.get(BOX_SEQ, "")
        known = box_seq.isascii() and box_seq.isdigit() and len(box_seq) <= _SEQ_DIGITS
        if not is_name(event.instance_id):
            feed.metrics.refuse("events", "instance_id")
        elif not feed.book.event(event, int(box_seq) if known else 0, feed.clock()):
            feed.metrics.refuse("events", "no Box-Seq")
        feed.flush()

    def complete(self, last_seq: int) -> None:
        self.live.set()

    def lost(self) -> None:
        self.live.clear()
