"""Feeds a `RouteState` from the bus: checks every message, applies snapshots, advances the clock.

A message that breaks the contract is counted (`box_bridge_refused_total`) and changes nothing. The
handlers run in the read loop: they make no task, no log record and no copy per message.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Final

from msgspec import Struct

from bridge.bus.core.connection import Connection
from bridge.bus.core.listener import Listener
from bridge.bus.core.message import Message
from bridge.bus.jetstream.follower import Follower
from bridge.bus.jetstream.start_position import Start
from bridge.errors import NameRefused, ProtocolError
from bridge.gateway.routes.index import Key, Route
from bridge.gateway.routes.instance_state import RouteCandidate
from bridge.gateway.routes.quota import Quota
from bridge.gateway.routes.registration_reader import RegistrationReader
from bridge.gateway.routes.state import LIMIT, RouteState
from bridge.protocol import InstanceEvent, InstanceHealth, decode
from bridge.subjects import BOX_SEQ, is_name, last_token, parse_instance_subject, parse_sequence
from bridge.validation import DISAGREE, check_health, read_withdrawal

_log = logging.getLogger(__name__)

_TICK: Final = 0.5  # seconds between checks of the leases, at most
_MAX_HEALTH: Final = 4 * 1024  # bytes of one instance's report
_MAX_STATS: Final = 1024 * 1024  # bytes of one host's report
_CLOCK_SLACK: Final = 10**9  # ns by which the server's clock may seem to go back


class _HealthVerdict(Struct, frozen=True, gc=False):
    """The part of an instance's health that routes depend on.

    A report for each instance of the fleet comes each second: this takes an eighth of the time that
    decoding all of it takes.
    """

    healthy: bool = True


_HostReport = dict[str, _HealthVerdict]


class RouteFeed:
    """Feeds `state` with `services` (None: all). `on_change` is called after each change.

    Raises NameRefused for an invalid service name.
    """

    def __init__(
        self,
        connection: Connection,
        state: RouteState,
        services: frozenset[str] | None,
        lease: float,
        on_change: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state = state
        self.services = services
        self.clock = clock
        self.metrics = connection.metrics
        self._connection = connection
        self._lease = lease
        self._on_change = on_change
        self._seq = state.seq  # of the last change that was reported
        subjects, one = connection.subjects, None
        if services is not None and len(services) == 1:
            [one] = services
        events = Follower(
            connection,
            subjects.events_stream,
            self._take_event,
            start=Start.NOW,
            subjects=[subjects.all_events if one is None else subjects.events(one)],
        )
        self.registry = RegistryFeed(self, connection, one)
        # Events first: an instance may begin to drain while the snapshot is read.
        self.followers = (events, self.registry.follower)

    async def listen(self) -> list[Listener]:
        """Subscribe to health reports, which no stream keeps. The caller closes the Listeners."""
        subjects = self._connection.subjects
        return [
            await self._connection.listen(subjects.all_health, self._take_health),
            await self._connection.listen(subjects.all_stats, self._take_stats),
        ]

    async def tick(self) -> None:
        """Advance the state's clock until cancelled."""
        pause = min(_TICK, self._lease / 10)
        while True:
            await asyncio.sleep(pause)
            extended = self.state.tick(self.clock(), live=self.live)
            if extended:
                self.metrics.count("leases_held_over")
                names = ", ".join(sorted(instance_id for _, instance_id in extended)[:5])
                _log.warning(
                    "half of all leases or more would expire at once: "
                    "%d routes are kept for one more lease (%s, …)",
                    len(extended),
                    names,
                )
            self.flush()

    @property
    def live(self) -> bool:
        """Whether both streams are followed without a gap."""
        return all(follower.live.is_set() for follower in self.followers)

    def stale_for(self) -> float:
        """Seconds since both streams were last followed without a gap; 0 while they are."""
        lost = [each.current_until for each in self.followers if not each.live.is_set()]
        return max(0.0, time.monotonic() - min(lost)) if lost else 0.0

    def wants(self, service: str) -> bool:
        """Whether this table holds the service."""
        return self.services is None or service in self.services

    def flush(self) -> None:
        """Call `on_change` if anything changed since the last call."""
        if self.state.seq != self._seq:
            self._seq = self.state.seq
            self._on_change()

    # ── health reports ───────────────────────────────────────────────────────────────────

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
        self.state.report((service, instance_id), health, self.clock())
        self.flush()

    def _take_stats(self, message: Message) -> None:
        if len(message.data) > _MAX_STATS:
            self.metrics.refuse("stats", "too large")
            return
        try:
            stats = decode(_HostReport, message.data)
        except ProtocolError:
            self.metrics.refuse("stats", "malformed")
            return
        self.state.sample(last_token(message.subject), stats, self.clock())
        self.flush()

    # ── events ───────────────────────────────────────────────────────────────────────────

    def _take_event(self, message: Message, seq: int, time_ns: int) -> None:
        service = last_token(message.subject)
        if not self.wants(service):
            return
        try:
            event = decode(InstanceEvent, message.data)
        except ProtocolError:
            self.metrics.refuse("events", "malformed")
            return
        if event.service != service or not is_name(service):
            self.metrics.refuse("events", DISAGREE)
            return
        box_seq = parse_sequence(message.headers.get(BOX_SEQ, ""))
        if not is_name(event.instance_id):
            self.metrics.refuse("events", "instance_id")
        elif not self.state.event(event, box_seq or 0, self.clock()):
            self.metrics.refuse("events", "no Box-Seq")
        self.flush()


class RegistryFeed:
    """Feeds registrations. A complete snapshot is applied in one step; until then the table keeps
    its routes, also those that the snapshot lacks.
    """

    def __init__(self, feed: RouteFeed, connection: Connection, service: str | None) -> None:
        subjects = connection.subjects
        self.follower = Follower(
            connection,
            subjects.registry_stream,
            self.take,
            subjects=[">" if service is None else subjects.registry_of(service)],
            on_begin=self.begin,
            on_complete=self.complete,
        )
        self._feed = feed
        self._first = True
        self._snapshot: dict[Key, RouteCandidate] | None = None
        self._quota = Quota()
        self._time_ns = 0
        self._reader = RegistrationReader()

    def begin(self) -> None:
        self._snapshot = {}
        self._quota = Quota()
        self._time_ns = 0

    def _has_place(self, route: Route, snapshot: Mapping[Key, RouteCandidate]) -> bool:
        """Whether the snapshot takes one more instance, which is then counted."""
        return len(snapshot) < LIMIT and self._quota.admit(route)

    def take(self, message: Message, seq: int, time_ns: int) -> None:
        # The order of a stream counts, even if the server's clock is set back.
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
            route = self._reader.read(message, service, instance_id)
        except ProtocolError:
            self._refuse("malformed")
            return
        if isinstance(route, str):
            self._refuse(route)
        elif self._snapshot is None:
            self._register(route, time_ns, self._reader.seq)
        elif route.key in self._snapshot or self._has_place(route, self._snapshot):
            key = route.service, instance_id  # the reader shares the text of a service name
            self._snapshot[key] = RouteCandidate(
                key, route=route, time_ns=time_ns, served_at=self._reader.seq
            )
        else:
            self._refuse("no room")

    def complete(self, last_seq: int) -> None:
        state, now = self._feed.state, self._feed.clock()
        snapshot, self._snapshot = self._snapshot or {}, None
        server_ns = self.follower.start_ns
        if server_ns < state.newest_ns - _CLOCK_SLACK:
            state.forget_times()
        for _ in range(state.take_over(snapshot, server_ns, now)):
            self._refuse("no room")
        if not self._first:
            state.rearm(now)
        self._first = False
        self._feed.flush()

    def _register(self, route: Route, time_ns: int, seq: int) -> None:
        if not self._feed.state.register(route, time_ns, self._feed.clock(), seq=seq):
            self._refuse("no room")
        self._feed.flush()

    def _withdraw(self, key: Key, message: Message) -> None:
        withdrawal = read_withdrawal(message.data, *key)
        if isinstance(withdrawal, str):
            self._refuse(withdrawal)
            return
        reason = f"deregistered: {withdrawal.reason}" if withdrawal.reason else "deregistered"
        self._feed.state.withdraw(key, reason, self._feed.clock())
        self._feed.flush()

    def _refuse(self, reason: str) -> None:
        self._feed.metrics.refuse("registry", reason)
