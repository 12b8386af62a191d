"""What a gateway knows of one instance, as small as it can be: there are a hundred thousand. Pure.

None of it can be part of a cycle, so the garbage collector is told to pass it over (``gc=False``):
a snapshot of 100,000 registrations spends a third of its time in the collector otherwise. Texts and
metadata that many instances have in common are kept once (announced.py).
"""

from __future__ import annotations

from collections import deque
from typing import Final

from msgspec import Struct

from bridge.gateway.routes.index import Key, Route
from bridge.protocol import InstanceState
from bridge.validation import HEALTHY_KEY

_SERVING: Final = (InstanceState.READY, InstanceState.BUSY)


class RouteCandidate(Struct, gc=False):
    """What is known of one id of one service.

    `withdrawn` says why it is, once it is. `route` is what it registered as, with its state, while
    its lease runs; `time_ns` the server's time of its newest registration; `listed` its route while
    it has one. `seen` is Box-Seq and state of the last event, `note` Box-Seq of the last note on
    its health and whether it said unhealthy. `said` is what it reports itself, and `said_at` when
    it did, unless that is too long ago; `sampled_bad` when its host last called it unhealthy.
    `healthy` is all that in all, None before it was registered; `flips` when that changed, the last
    times. Times but `time_ns` are monotonic.
    """

    key: Key
    withdrawn: str = ""
    route: Route | None = None
    listed: Route | None = None
    time_ns: int = 0
    seen: tuple[int, str] = (0, "")
    state: InstanceState = InstanceState.READY
    note: tuple[int, bool] = (0, False)
    said: bool = True
    said_at: float | None = None
    sampled_bad: float | None = None
    healthy: bool | None = None
    flips: deque[float] | None = None
    damped_until: float = 0.0

    def obstacle(self) -> str:
        """Why it takes no traffic, damping aside; "" if it does."""
        if self.withdrawn:
            return self.withdrawn
        if self.route is None:
            return "its registration was not renewed"
        if self.state not in _SERVING:
            return f"it is {self.state}"
        return "" if self.healthy else "it is unhealthy"

    def judge(self) -> bool:
        """Whether it is healthy, by all that is known."""
        reported = self.said if self.said_at is not None else self.sampled_bad is None
        registered = self.route is None or self.route.metadata.get(HEALTHY_KEY) != "false"
        return reported and not self.note[1] and registered

    def is_told(self, told: Route) -> bool:
        """Whether this is what it registered as."""
        route = self.route
        return (
            route is not None
            and route.endpoint == told.endpoint
            and route.metadata == told.metadata
            and route.started_at == told.started_at
            and route.host == told.host
        )

    def outdates(self, told: Route, time_ns: int) -> bool:
        """Whether the registration that is known is the newer one, or the same."""
        if time_ns != self.time_ns or self.route is None:
            return time_ns <= self.time_ns
        return _content(told) <= _content(self.route)


def _content(told: Route) -> tuple[str, str, str, list[tuple[str, str]]]:
    """Something to go by for two registrations of the same moment."""
    return told.started_at.isoformat(), told.endpoint, told.host, sorted(told.metadata.items())
