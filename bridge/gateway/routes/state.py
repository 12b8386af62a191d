"""What the bus says of instances, merged into who takes traffic. Pure: times are arguments.

The same messages give the same routes in whatever order, and however often, they come:

- An id that was withdrawn (deregistered, or Draining and beyond by its events) never comes back.
- Of several registrations of one id the newest by the server's time stands; only a newer one
  renews the lease.
- Of the events of one id the one with the highest `Box-Seq` says the state, and the health note
  with the highest says the health.

An instance has a route while it is registered and its lease runs, is Ready or Busy (a registration
alone counts as Ready), and nobody calls it unhealthy: not its metadata, not its events, not its own
reports, nor, where it sends none, those of its host. Reports are of the moment: the last one
counts, until it is as old as a lease.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Final, Protocol

from msgspec.structs import replace

from bridge.bus.leases import Leases
from bridge.gateway.routes.index import Change, Delete, Key, Put, Route, RouteIndex
from bridge.gateway.routes.instance_state import RouteCandidate
from bridge.protocol import (
    InstanceEvent,
    InstanceHealth,
    InstanceState,
)
from bridge.validation import HEALTHY_KEY

MEMORY: Final = 600.0  # seconds that what has no lease is remembered, as the registry remembers it
LIMIT: Final = 100_000  # instances that are registered, and as many that are remembered
FLAPS: Final = 5  # changes of health …
FLAP_SPAN: Final = 60.0  # … within so many seconds …
FLAP_PAUSE: Final = 60.0  # … keep an instance out for so many more
MASS: Final = 3  # leases, at least, and half of them all: too many to run out at once

_LEAVING: Final = (
    InstanceState.DRAINING,
    InstanceState.STOPPING,
    InstanceState.STOPPED,
    InstanceState.FAILED,
)
_DAMPED: Final = "its health changed too often"


class HealthSample(Protocol):
    """Whatever says whether an instance is healthy."""

    @property
    def healthy(self) -> bool: ...


class RouteState:
    """See the module. `lease` in seconds; `now` is always a monotonic time in seconds.

    `routes` is always current, `seq` counts its changes. While `telling`, `news` holds what changed
    since the last `take_news`.
    """

    def __init__(self, lease: float, *, limit: int = LIMIT) -> None:
        self.routes = RouteIndex()
        self.newest_ns = 0
        self.seq = 0
        self.held_over: set[Key] = set()
        self._lease = lease
        self._limit = limit
        self._leases: Leases[Key] = Leases(lease)
        self._leased: dict[Key, RouteCandidate] = {}
        self._rest: OrderedDict[Key, tuple[float, RouteCandidate]] = OrderedDict()
        self._services: dict[str, tuple[str, ...]] = {}
        self._reporting: dict[Key, RouteCandidate] = {}
        self._damped: dict[Key, RouteCandidate] = {}
        self._sick: set[str] = set()
        self._alones: dict[str, tuple[str, ...]] = {}
        self.news: list[Change] = []
        self.telling = True

    # ── what the bus says ────────────────────────────────────────────────────────────────

    def register(self, told: Route, time_ns: int, now: float, *, age: float = 0.0) -> bool:
        """An instance announces itself as `told`, or renews its lease, of which `age` seconds are
        over.

        `time_ns` is the server's. Returns False when there is no room for it.
        """
        self.newest_ns = max(self.newest_ns, time_ns)
        key = told.key
        instance = self._leased.get(key)
        if instance is None:
            instance, full = self._find(key), len(self._leased) >= self._limit
            if instance.withdrawn or full or instance.outdates(told, time_ns):
                self._remember(instance, now)
                return bool(instance.withdrawn) or not full
            self._rest.pop(instance.key, None)
            self._leased[instance.key] = instance
        elif instance.outdates(told, time_ns):
            return True
        instance.time_ns = time_ns
        self._leases.renew(instance.key, now - age)
        self.held_over.discard(key)
        if not instance.is_told(told):
            state = instance.state
            instance.route = told if told.state is state else replace(told, state=state)
            self._settle(instance, now)
        return True

    def take_over(self, snapshot: dict[Key, RouteCandidate], server_ns: int, now: float) -> int:
        """Register all of a snapshot that was taken at `server_ns` by the server's clock, and whose
        leases were not over then. Returns for how many there was no room. Keeps `snapshot`.

        Of one of whom nothing else is known nothing is asked that only news could answer, and no
        mapping grows step by step: a fourth of what `register` takes.
        """
        oldest, known, full = server_ns - int(self._lease * 1e9), self._services, self._limit
        for key in [key for key, each in snapshot.items() if each.time_ns < oldest]:
            del snapshot[key]
        if len(self._leased) + len(snapshot) > full:
            others = list(snapshot)
        else:
            others = [
                key
                for key, each in snapshot.items()
                if key[1] in known or (each.route and HEALTHY_KEY in each.route.metadata)
            ]
        told = [snapshot.pop(key) for key in others]
        deadlines = dict.fromkeys(snapshot, now + self._lease)
        for key, fresh in snapshot.items():
            time_ns, (service, instance_id) = fresh.time_ns, key
            if time_ns < server_ns:
                deadlines[key] -= (server_ns - time_ns) / 1e9
            if time_ns > self.newest_ns:
                self.newest_ns = time_ns
            if instance_id in known:  # of another service in the same snapshot
                known[instance_id] = (*known[instance_id], service)
            else:
                known[instance_id] = self._alones.get(service) or self._alone(service)
            fresh.healthy = True
            self._list(fresh, fresh.route)
        self._leases.take_over(deadlines)
        if self._leased:
            self._leased.update(snapshot)
        else:
            self._leased = snapshot
        refused = 0
        for each in told:
            if each.route is not None:
                age = max(0.0, (server_ns - each.time_ns) / 1e9)
                refused += not self.register(each.route, each.time_ns, now, age=age)
        return refused

    def withdraw(self, key: Key, reason: str, now: float) -> None:
        """An instance takes no traffic any more, for good."""
        instance = self._known(key, now)
        if not instance.withdrawn:
            instance.withdrawn = reason
            self._settle(instance, now)
            instance.route = None
            self._leases.release(key)
            self.held_over.discard(key)
            for group in (self._leased, self._reporting, self._damped):
                group.pop(key, None)
            self._sick.discard(key[1])
            self._remember(instance, now)

    def event(self, event: InstanceEvent, seq: int, now: float) -> bool:
        """A step or a note, with its `Box-Seq`. Returns False for one that has none (0) and would
        need it: what withdraws for good does not.
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
        if (seen := (seq, event.to_state.value)) > instance.seen:
            instance.seen, instance.state = seen, event.to_state
            if instance.route is not None and instance.route.state is not event.to_state:
                instance.route = replace(instance.route, state=event.to_state)
        word = event.message.partition(":")[0]
        if event.from_state is event.to_state and word in ("healthy", "unhealthy"):
            instance.note = max(instance.note, (seq, word == "unhealthy"))
        self._settle(instance, now)
        return True

    def report(self, key: Key, health: InstanceHealth, now: float) -> None:
        """What an instance says of itself."""
        instance = self._known(key, now)
        if instance.withdrawn:
            return
        news = instance.said_at is None or instance.said is not health.healthy
        instance.said, instance.said_at = health.healthy, now
        self._reporting[key] = instance
        if news:
            self._settle(instance, now)

    def sample(self, host: str, stats: Mapping[str, HealthSample], now: float) -> None:
        """What a host says of its instances: not of those that were registered by another. Looks at
        those that are sick, or were.
        """
        recovered = [name for name in self._sick if name in stats and stats[name].healthy]
        sick = [name for name, health in stats.items() if not health.healthy]
        for instance_id in (*recovered, *sick):
            for service in self._services.get(instance_id, ()):
                instance = self._leased.get((service, instance_id))
                if instance is None or instance.route is None:
                    continue
                if instance.route.host in ("", host):
                    self._sample(instance, stats[instance_id].healthy, now)

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
        """Nothing could be heard until now: every lease runs anew."""
        self._leases.rearm(now)
        self.held_over.clear()
        for instance in self._reporting.values():
            instance.said_at = now if instance.said_at is not None else None
            instance.sampled_bad = now if instance.sampled_bad is not None else None

    def forget_times(self) -> None:
        """The server's clock went back: what it stamps from now on is newer than all before."""
        self.newest_ns = 0
        for instance in self._leased.values():
            instance.time_ns = 0
        for _, instance in self._rest.values():
            instance.time_ns = 0

    def tick(self, now: float, *, live: bool) -> list[Key]:
        """Let time pass; call it every second or more often, `live` while all can be heard.

        Returns those whose lease has run out and who are kept for another one, because half of all
        leases, and three at least, would run out at once.
        """
        gone = self._leases.tick(now, live=live)
        kept = self._held_over(gone, now) if gone else []
        for key in gone:
            if key not in self.held_over:
                self._expire(key, now)
        if live:
            self._pass_reports(now)
        for key in [key for key, each in self._damped.items() if each.damped_until <= now]:
            self._settle(self._damped.pop(key), now)
        while self._rest and next(iter(self._rest.values()))[0] <= now - MEMORY:
            self._forget_oldest()
        return kept

    def take_news(self) -> list[Change]:
        """What has changed since the last call."""
        news, self.news = self.news, []
        return news

    # ── inside ───────────────────────────────────────────────────────────────────────────

    def _held_over(self, gone: list[Key], now: float) -> list[Key]:
        """Those of `gone` that get another lease; a second time nobody does.

        Renewals are spread over a third of a lease, so that whoever is two thirds late counts as
        running out with them.
        """
        late = {*gone, *self._leases.due(now + self._lease / 3)} | self.held_over
        again = [key for key in gone if key in self.held_over]
        self.held_over.difference_update(again)
        if len(late) < MASS or 2 * len(late) < len(self._leased):
            return []
        kept = [key for key in gone if key not in again]
        for key in kept:
            self._leases.renew(key, now)
        self.held_over.update(kept)
        return kept

    def _expire(self, key: Key, now: float) -> None:
        instance = self._leased.pop(key)
        instance.route = None
        self._settle(instance, now)
        self._remember(instance, now)

    def _pass_reports(self, now: float) -> None:
        old = now - self._lease
        for key, instance in list(self._reporting.items()):
            if instance.said_at is not None and instance.said_at <= old:
                instance.said_at = None
                self._settle(instance, now)
            if instance.sampled_bad is not None and instance.sampled_bad <= old:
                self._sample(instance, healthy=True, now=now)
            if instance.said_at is None and instance.sampled_bad is None:
                del self._reporting[key]

    def _known(self, key: Key, now: float) -> RouteCandidate:
        """What is known of an instance; of one that has no lease it is remembered from now on."""
        instance = self._leased.get(key)
        if instance is None:
            instance = self._find(key)
            self._remember(instance, now)
        return instance

    def _find(self, key: Key) -> RouteCandidate:
        """What is known of an instance that has no lease; who calls has to keep it."""
        if (found := self._rest.get(key)) is not None:
            return found[1]
        service, instance_id = key
        others = self._services.get(instance_id)
        if others is None:
            self._services[instance_id] = self._alone(service)
        elif service not in others:
            self._services[instance_id] = (*others, service)
        return RouteCandidate(key)

    def _alone(self, service: str) -> tuple[str, ...]:
        """The service as the only one of an instance; the same object for all of its instances."""
        if len(self._alones) > self._limit:
            self._alones.clear()
        return self._alones.setdefault(service, (service,))

    def _remember(self, instance: RouteCandidate, now: float) -> None:
        """Keep one that has no lease, and let go of who was not heard of for longest."""
        self._rest[instance.key] = now, instance
        self._rest.move_to_end(instance.key)
        if len(self._rest) > self._limit:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        key, _ = self._rest.popitem(last=False)
        self._damped.pop(key, None)
        self._reporting.pop(key, None)
        self._sick.discard(key[1])
        service, instance_id = key
        others = tuple(name for name in self._services[instance_id] if name != service)
        if others:
            self._services[instance_id] = others
        else:
            del self._services[instance_id]

    def _settle(self, instance: RouteCandidate, now: float) -> None:
        """Bring the route of one instance up to what is known of it."""
        if instance.route is not None:
            before_that, instance.healthy = instance.healthy, instance.judge()
            if before_that is not None and instance.healthy is not before_that:
                self._count_flip(instance, now)
        why = instance.obstacle() or (_DAMPED if instance.damped_until > now else "")
        route = None if why else instance.route
        if route is not instance.listed:
            self._list(instance, route, why)

    def _list(self, instance: RouteCandidate, route: Route | None, why: str = "") -> None:
        """The route of `instance` is this one now, or it has none, and `why`."""
        instance.listed = route
        self.seq += 1
        service, instance_id = instance.key
        if route is not None:
            self.routes.put(route)
            if self.telling:
                self.news.append(Put(seq=self.seq, route=route))
            return
        self.routes.delete(service, instance_id)
        if self.telling:
            self.news.append(
                Delete(seq=self.seq, service=service, instance_id=instance_id, reason=why)
            )

    def _count_flip(self, instance: RouteCandidate, now: float) -> None:
        if instance.flips is None:
            instance.flips = deque(maxlen=FLAPS)
        flips = instance.flips
        flips.append(now)
        if len(flips) == FLAPS and now - flips[0] <= FLAP_SPAN:
            instance.damped_until = now + FLAP_PAUSE
            self._damped[instance.key] = instance
