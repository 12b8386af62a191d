"""The state of one instance in a route table, in little memory: there may be 100,000. Pure.

No reference cycle is possible, so the garbage collector skips these objects (``gc=False``); a
snapshot of 100,000 registrations would spend a third of its time in the collector otherwise.
`registration_reader` shares texts and metadata between instances.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from msgspec import Struct

from bridge.gateway.routes.index import Key, Route
from bridge.protocol import InstanceState
from bridge.validation import HEALTHY_KEY

_SERVING: Final = (InstanceState.READY, InstanceState.BUSY)
_UNREGISTERED: Final = (
    'no registration of it has arrived: its Box sends that, or with registration = "self" the '
    "instance itself"
)
_STARTING: Final = (InstanceState.CREATING, InstanceState.BOOTING)


class RouteCandidate(Struct, gc=False):
    """Everything known of one instance id of one service.

    `withdrawal` is the reason of its withdrawal, "" if it was not withdrawn. `route` is its
    registration with its state, while its lease runs; `time_ns` the server's time of the newest
    registration; `current` its route in the table. `last_event` is Box-Seq and state of the last
    event, `note` Box-Seq of the last note on its health and whether that was unhealthy. `served_at`
    is the Box-Seq at which it served, by its registration: older events do not count.

    `own_health` is what it last reported itself, and `own_at` when, None once that is too old;
    `sampled_bad` when its host last reported it unhealthy. `healthy` is the result of these, None
    before its registration; `flips` are the times of the last changes of that. All times except
    `time_ns` are monotonic.
    """

    key: Key
    withdrawal: str = ""
    route: Route | None = None
    current: Route | None = None
    time_ns: int = 0
    last_event: tuple[int, str] = (0, "")
    state: InstanceState = InstanceState.READY
    note: tuple[int, bool] = (0, False)
    served_at: int = 0
    own_health: bool = True
    own_at: float | None = None
    sampled_bad: float | None = None
    healthy: bool | None = None
    flips: deque[float] | None = None
    damped_until: float = 0.0

    def obstacle(self) -> str:
        """Why it takes no traffic, apart from damping; "" if it does."""
        if self.withdrawal:
            return self.withdrawal
        if self.route is None:
            return "its registration was not renewed" if self.time_ns else _UNREGISTERED
        if self.state not in _SERVING:
            return f"it is {self.state}"
        return "" if self.healthy else "it is unhealthy"

    def judge(self) -> bool:
        """Whether it is healthy, by its reports, its last note and its metadata."""
        report = self.own_health if self.own_at is not None else self.sampled_bad is None
        metadata = self.route is None or self.route.metadata.get(HEALTHY_KEY) != "false"
        return report and not self._is_noted() and metadata

    def _is_noted(self) -> bool:
        """Whether its last note reports it unhealthy. A registration that is newer replaces it."""
        seq, unhealthy = self.note
        return unhealthy and seq >= self.served_at

    @property
    def is_starting(self) -> bool:
        """Whether it is registered, and not known to serve yet."""
        return self.route is not None and self.state in _STARTING

    def note_event(self, seq: int, state: InstanceState) -> None:
        """Apply the event `seq`, by which it is in `state`."""
        if seq >= self.served_at and (latest := (seq, state.value)) > self.last_event:
            self.last_event, self.state = latest, state

    def note_serving(self, seq: int) -> bool:
        """Apply a registration: it served when `seq` was its last event; whether that is news."""
        if seq <= self.served_at:
            return False
        self.served_at = seq
        if seq > self.last_event[0]:
            self.state = InstanceState.READY
        return True

    def is_registered_as(self, other: Route) -> bool:
        """Whether its registration equals `other`."""
        route = self.route
        return (
            route is not None
            and route.endpoint == other.endpoint
            and route.metadata == other.metadata
            and route.started_at == other.started_at
            and route.host == other.host
        )

    def outdates(self, other: Route, time_ns: int) -> bool:
        """Whether its registration is newer than `other` of `time_ns`, or the same."""
        if time_ns != self.time_ns or self.route is None:
            return time_ns <= self.time_ns
        return _content(other) <= _content(self.route)


def _content(route: Route) -> tuple[str, str, str, list[tuple[str, str]]]:
    """An order for two registrations of the same time."""
    return route.started_at.isoformat(), route.endpoint, route.host, sorted(route.metadata.items())
