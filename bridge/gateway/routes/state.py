"""The state of a route table: merges messages of the bus into routes. Pure: times are arguments.

The same messages give the same routes in any order and with any repetition:

- An instance id that was withdrawn (deregistered, or Draining and beyond by its events) never
  returns.
- The newest registration of an id by the server's time counts; only a newer one renews the lease.
- The event of an id with the highest `Box-Seq` gives the state, and the health note with the
  highest one the health. A registration of a Box has a `Box-Seq`, too: it shows that the instance
  serves, and is healthy unless its metadata deny that. So a table need not wait for events that
  the stream does not take.

An instance has a route while three conditions hold. It is registered, and its lease runs. It is
Ready or Busy (without an event it counts as Ready; one in its host's report has left Creating and
Booting). No source reports it unhealthy: neither its
metadata nor its events nor its own reports, nor, if it sends none, those of its host. The last
report counts until it is as old as a lease.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from typing import Final, Protocol

from msgspec.structs import replace

from bridge.bus.leases import Leases
from bridge.gateway.routes.index import Change, Delete, Key, Put, Route, RouteIndex
from bridge.gateway.routes.instance_state import RouteCandidate
from bridge.gateway.routes.quota import Quota
from bridge.gateway.routes.service_names import ServiceNames
from bridge.protocol import (
    InstanceEvent,
    InstanceHealth,
    InstanceState,
)
from bridge.validation import HEALTHY_KEY

MEMORY: Final = 600.0  # seconds to remember an instance without a lease, as the registry does
LIMIT: Final = 100_000  # instances with a lease, and as many without
FLAPS: Final = 5  # changes of health …
FLAP_SPAN: Final = 60.0  # … within so many seconds …
FLAP_PAUSE: Final = 60.0  # … remove the route for so many more
MASS: Final = 3  # leases that expire at once are too many: so many at least, and half of all

_LEAVING: Final = (
    InstanceState.DRAINING,
    InstanceState.STOPPING,
    InstanceState.STOPPED,
    InstanceState.FAILED,
)
_DAMPED: Final = "its health changed too often"


class HealthSample(Protocol):
    """A report on whether an instance is healthy."""

    @property
    def healthy(self) -> bool: ...


class RouteState:
    """See the module. `lease` in seconds; `now` is always a monotonic time in seconds.

    `routes` is always current, `seq` counts its changes. With `record_changes`, `changes` are those
    since the last `take_changes`.
    """

    def __init__(self, lease: float, *, limit: int = LIMIT) -> None:
        self.routes = RouteIndex()
        self.newest_ns = 0
        self.seq = 0
        self.held_over: set[Key] = set()
        self._lease = lease
        self._limit = limit
        self._quota = Quota()
        self._leases: Leases[Key] = Leases(lease)
        self._leased: dict[Key, RouteCandidate] = {}
        self._rest: OrderedDict[Key, tuple[float, RouteCandidate]] = OrderedDict()
        self._names = ServiceNames()
        self._reporting: dict[Key, RouteCandidate] = {}
        self._damped: dict[Key, RouteCandidate] = {}
        self._sick: set[str] = set()
        self._starting: set[str] = set()
        self.changes: list[Change] = []
        self.record_changes = True

    # ── messages ────────────────────────────────────────────────────────────────

    def register(
        self, route: Route, time_ns: int, now: float, *, age: float = 0.0, seq: int = 0
    ) -> bool:
        """Register an instance as `route`, or renew its lease, `age` seconds of which are over.

        `time_ns` is the server's, `seq` the Box-Seq, 0 without one. Returns False if there is no
        room for it.
        """
        self.newest_ns = max(self.newest_ns, time_ns)
        key = route.key
        instance = self._leased.get(key)
        news = False
        if instance is None:
            instance = self._find(key)
            full = len(self._leased) >= self._limit or not self._quota.has_room(route)
            instance.note_serving(seq)
            if instance.withdrawal or full or instance.outdates(route, time_ns):
                self._remember(instance, now)
                return bool(instance.withdrawal) or not full
            self._rest.pop(instance.key, None)
            self._leased[instance.key] = instance
            self._quota.add(route)
        else:
            news = instance.note_serving(seq)
            if instance.outdates(route, time_ns):
                self._update_state(instance)
                self._settle(instance, now)
                return True
        instance.time_ns = time_ns
        self._leases.renew(instance.key, now - age)
        self.held_over.discard(key)
        if not instance.is_registered_as(route):
            if instance.route is not None:
                self._quota.remove(instance.route)
                self._quota.add(route)
            instance.route, news = route, True
        if news:
            self._update_state(instance)
            self._settle(instance, now)
        return True

    def take_over(self, snapshot: dict[Key, RouteCandidate], server_ns: int, now: float) -> int:
        """Register a snapshot, taken at `server_ns` by the server's clock, without the leases that
        had expired then. Returns for how many there was no room. Takes ownership of `snapshot`.

        Instances of which nothing else is known take a quarter of the time of `register`: most
        checks are unnecessary, and no dict grows step by step.
        """
        oldest, names = server_ns - int(self._lease * 1e9), self._names
        for key in [key for key, each in snapshot.items() if each.time_ns < oldest]:
            del snapshot[key]
        known_before = self._take_known(snapshot)
        deadlines = dict.fromkeys(snapshot, now + self._lease)
        for key, fresh in snapshot.items():
            time_ns, (service, instance_id) = fresh.time_ns, key
            if time_ns < server_ns:
                deadlines[key] -= (server_ns - time_ns) / 1e9
            if time_ns > self.newest_ns:
                self.newest_ns = time_ns
            names.add(service, instance_id)  # maybe under another service in the same snapshot
            fresh.healthy = True
            self._set_route(fresh, fresh.route)
        self._leases.take_over(deadlines)
        if self._leased:
            self._leased.update(snapshot)
        else:
            self._leased = snapshot
        refused = 0
        for each in known_before:
            if each.route is not None:
                age = max(0.0, (server_ns - each.time_ns) / 1e9)
                refused += not self.register(
                    each.route, each.time_ns, now, age=age, seq=each.served_at
                )
        return refused

    def _take_known(self, snapshot: dict[Key, RouteCandidate]) -> list[RouteCandidate]:
        """Take out of `snapshot` the instances that only `register` can judge; count the others. It
        takes all of them if a bound may be exceeded.
        """
        known, total = self._names, len(self._leased) + len(snapshot)
        routes = (each.route for each in snapshot.values() if each.route)
        if total > self._limit or not self._quota.add_all(routes):
            taken = list(snapshot.values())
            snapshot.clear()
            return taken
        taken = [
            each
            for key, each in snapshot.items()
            if key[1] in known or (each.route and HEALTHY_KEY in each.route.metadata)
        ]
        for each in taken:
            del snapshot[each.key]
            if each.route is not None:  # `register` counts it
                self._quota.remove(each.route)
        return taken

    def withdraw(self, key: Key, reason: str, now: float) -> None:
        """Remove the route of an instance for good."""
        instance = self._known(key, now)
        if not instance.withdrawal:
            instance.withdrawal = reason
            self._settle(instance, now)
            if instance.route is not None:
                self._quota.remove(instance.route)
            instance.route = None
            self._leases.release(key)
            self.held_over.discard(key)
            for group in (self._leased, self._reporting, self._damped):
                group.pop(key, None)
            self._sick.discard(key[1])
            self._starting.discard(key[1])
            self._remember(instance, now)

    def event(self, event: InstanceEvent, seq: int, now: float) -> bool:
        """Apply a state change or a note with its `Box-Seq`. Returns False if the event needs one
        and has none (0); an event that withdraws the instance needs none.
        """
        if event.to_state in _LEAVING:
            reason = f"it is {event.to_state}"
            if event.message:
                reason += f": {event.message}"
            self.withdraw((event.service, event.instance_id), reason, now)
            return True
        if seq < 1:
            return False
        instance = self._known((event.service, event.instance_id), now)
        instance.note_event(seq, event.to_state)
        self._update_state(instance)
        word = event.message.partition(":")[0]
        if event.from_state is event.to_state and word in ("healthy", "unhealthy"):
            instance.note = max(instance.note, (seq, word == "unhealthy"))
        self._settle(instance, now)
        return True

    def report(self, key: Key, health: InstanceHealth, now: float) -> None:
        """Apply the health that an instance reports of itself."""
        instance = self._known(key, now)
        if instance.withdrawal:
            return
        is_new = instance.own_at is None or instance.own_health is not health.healthy
        instance.own_health, instance.own_at = health.healthy, now
        self._reporting[key] = instance
        if is_new:
            self._settle(instance, now)

    def sample(self, host: str, stats: Mapping[str, HealthSample], now: float) -> None:
        """Apply the health that a host reports of its instances, except of those that another host
        registered. Only instances that are or were unhealthy, or that were starting, cost time.
        """
        for instance_id in [name for name in self._starting if name in stats]:
            for instance in self._of_host(instance_id, host):
                if instance.is_starting:  # a host reports what serves
                    instance.state = InstanceState.READY
                    self._update_state(instance)
                    self._settle(instance, now)
        recovered = [name for name in self._sick if name in stats and stats[name].healthy]
        sick = [name for name, health in stats.items() if not health.healthy]
        for instance_id in (*recovered, *sick):
            for instance in self._of_host(instance_id, host):
                self._sample(instance, stats[instance_id].healthy, now)

    def _of_host(self, instance_id: str, host: str) -> Iterator[RouteCandidate]:
        """The registered instances of this id, except those that another host registered."""
        for service in self._names.of(instance_id):
            instance = self._leased.get((service, instance_id))
            if instance is not None and instance.route and instance.route.host in ("", host):
                yield instance

    def _update_state(self, instance: RouteCandidate) -> None:
        """Bring the state in the route of `instance` up to date."""
        route, state = instance.route, instance.state
        if route is not None and route.state is not state:
            instance.route = replace(route, state=state)

    def _sample(self, instance: RouteCandidate, healthy: bool, now: float) -> None:
        instance.sampled_bad = None if healthy else now
        if healthy:
            self._sick.discard(instance.key[1])
        else:
            self._sick.add(instance.key[1])
            self._reporting[instance.key] = instance
        self._settle(instance, now)

    # ── time ─────────────────────────────────────────────────────────────────────────────

    def rearm(self, now: float) -> None:
        """Start every lease again at `now`: no renewal could arrive before."""
        self._leases.rearm(now)
        self.held_over.clear()
        for instance in self._reporting.values():
            instance.own_at = now if instance.own_at is not None else None
            instance.sampled_bad = now if instance.sampled_bad is not None else None

    def forget_times(self) -> None:
        """The server's clock was set back: every later stamp counts as newer than all before."""
        self.newest_ns = 0
        for instance in self._leased.values():
            instance.time_ns = 0
        for _, instance in self._rest.values():
            instance.time_ns = 0

    def tick(self, now: float, *, live: bool) -> list[Key]:
        """Expire leases and reports; call it each second or more often, `live` while no message can
        be missing.

        Returns the instances that get another lease after theirs expired, because half of all
        leases, and at least three, would expire at once.
        """
        expired = self._leases.tick(now, live=live)
        extended = self._extend(expired, now) if expired else []
        for key in expired:
            if key not in self.held_over:
                self._expire(key, now)
        if live:
            self._expire_reports(now)
        for key in [key for key, each in self._damped.items() if each.damped_until <= now]:
            self._settle(self._damped.pop(key), now)
        while self._rest and next(iter(self._rest.values()))[0] <= now - MEMORY:
            self._forget_oldest()
        return extended

    def blocker(self, key: Key) -> str | None:
        """Why an instance has no route; None if it has one."""
        instance = self._leased.get(key)
        if instance is None:
            _, instance = self._rest.get(key, (0.0, RouteCandidate(key)))
        if instance.current is not None:
            return None
        return instance.obstacle() or _DAMPED

    def take_changes(self) -> list[Change]:
        """The changes since the last call."""
        changes, self.changes = self.changes, []
        return changes

    # ── inside ───────────────────────────────────────────────────────────────────────────

    def _extend(self, expired: list[Key], now: float) -> list[Key]:
        """The instances of `expired` that get another lease, which none gets twice in a row.

        Renewals are spread over a third of a lease: a lease that expires within that time counts as
        expiring at once.
        """
        late = {*expired, *self._leases.due(now + self._lease / 3)} | self.held_over
        again = [key for key in expired if key in self.held_over]
        self.held_over.difference_update(again)
        if len(late) < MASS or 2 * len(late) < len(self._leased):
            return []
        extended = [key for key in expired if key not in again]
        for key in extended:
            self._leases.renew(key, now)
        self.held_over.update(extended)
        return extended

    def _expire(self, key: Key, now: float) -> None:
        instance = self._leased.pop(key)
        if instance.route is not None:
            self._quota.remove(instance.route)
        instance.route = None
        self._settle(instance, now)
        self._remember(instance, now)

    def _expire_reports(self, now: float) -> None:
        old = now - self._lease
        for key, instance in list(self._reporting.items()):
            if instance.own_at is not None and instance.own_at <= old:
                instance.own_at = None
                self._settle(instance, now)
            if instance.sampled_bad is not None and instance.sampled_bad <= old:
                self._sample(instance, healthy=True, now=now)
            if instance.own_at is None and instance.sampled_bad is None:
                del self._reporting[key]

    def _known(self, key: Key, now: float) -> RouteCandidate:
        """The state of an instance; one without a lease is remembered from now on."""
        instance = self._leased.get(key)
        if instance is None:
            instance = self._find(key)
            self._remember(instance, now)
        return instance

    def _find(self, key: Key) -> RouteCandidate:
        """The state of an instance without a lease; the caller must store it."""
        if (found := self._rest.get(key)) is not None:
            return found[1]
        self._names.add(*key)
        return RouteCandidate(key)

    def _remember(self, instance: RouteCandidate, now: float) -> None:
        """Store an instance without a lease; beyond the limit forget the oldest one."""
        self._rest[instance.key] = now, instance
        self._rest.move_to_end(instance.key)
        if len(self._rest) > self._limit:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        key, _ = self._rest.popitem(last=False)
        self._damped.pop(key, None)
        self._reporting.pop(key, None)
        self._sick.discard(key[1])
        self._starting.discard(key[1])
        self._names.remove(*key)

    def _settle(self, instance: RouteCandidate, now: float) -> None:
        """Update the route of an instance from its state."""
        if instance.route is not None:
            before, instance.healthy = instance.healthy, instance.judge()
            if before is not None and instance.healthy is not before:
                self._count_flip(instance, now)
        obstacle = instance.obstacle() or (_DAMPED if instance.damped_until > now else "")
        route = None if obstacle else instance.route
        if route is not instance.current:
            self._set_route(instance, route, obstacle)
        if instance.is_starting:
            self._starting.add(instance.key[1])
        elif self._starting:
            self._starting.discard(instance.key[1])

    def _set_route(self, instance: RouteCandidate, route: Route | None, reason: str = "") -> None:
        """Put the route of `instance` into the table, or delete it for a `reason`."""
        instance.current = route
        self.seq += 1
        service, instance_id = instance.key
        if route is not None:
            self.routes.put(route)
            if self.record_changes:
                self.changes.append(Put(seq=self.seq, route=route))
            return
        self.routes.delete(service, instance_id)
        if self.record_changes:
            self.changes.append(
                Delete(seq=self.seq, service=service, instance_id=instance_id, reason=reason)
            )

    def _count_flip(self, instance: RouteCandidate, now: float) -> None:
        if instance.flips is None:
            instance.flips = deque(maxlen=FLAPS)
        flips = instance.flips
        flips.append(now)
        if len(flips) == FLAPS and now - flips[0] <= FLAP_SPAN:
            instance.damped_until = now + FLAP_PAUSE
            self._damped[instance.key] = instance
