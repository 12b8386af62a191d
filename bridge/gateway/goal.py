"""The goal of a client that waits for instances, and what the fleet still lacks for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Final

from msgspec import Struct

from bridge.bus.core.message import Message
from bridge.gateway.errors import ScaleError
from bridge.gateway.routes.watch import RouteWatch
from bridge.protocol import (
    InstanceEvent,
    InstancesResponse,
    InstanceState,
    ScaleResponse,
    decode,
)

_NAMED: Final = 3  # instances, or hosts, that an error names
_SERVING: Final = (InstanceState.READY, InstanceState.BUSY)


class Goal(Struct, frozen=True, kw_only=True):
    """The goal of a wait; `count` instances shall be Ready, for the error.

    - `settled`: exactly these instances shall take traffic; without it at least `count` shall.
    - `known`: ids of instances from before, which gateways may still route to.
    - `accepted`: a Box has accepted the change, so the wait outlasts times without an answer.
    - `all_replaced`: a rollout that stops misses the goal, however many instances serve.
    - `version`: only a Box that has seen this version of the service's record may answer.
    """

    count: int
    reached: Callable[[InstancesResponse], bool]
    settled: bool = False
    known: AbstractSet[str] = frozenset()
    accepted: bool = False
    all_replaced: bool = False
    version: str = ""


class GoalWait:
    """One wait: what it has seen so far. `changed` is set by each event of the service.

    For the error after the deadline: how many instances are `ready`, what the fleet `lacks`, and
    the `last_failure`.
    """

    def __init__(self, service: str, goal: Goal) -> None:
        self.changed = asyncio.Event()
        self.ready = 0
        self.lacks = self.last_failure = ""
        self._service = service
        self._goal = goal
        self._known = set(goal.known)

    def take_event(self, message: Message) -> None:
        """Note an event of the service."""
        event = decode(InstanceEvent, message.data)
        if event.to_state is InstanceState.FAILED:
            self.last_failure = event.message
        self.changed.set()

    def is_over(self, seen: InstancesResponse, routes: RouteWatch) -> bool:
        """Whether the goal is reached. Raises ScaleError if a rollout has stopped before."""
        goal, stopped = self._goal, seen.stopped.get(self._service)
        self._known |= {info.id for info in seen.instances}
        self.lacks = _routing_gap(goal, seen, self._known, routes)
        missed = stopped and goal.all_replaced
        if not self.lacks and not missed and goal.reached(seen):
            return True
        if stopped:
            raise ScaleError(f"{self._service}: {stopped}")
        self.ready = len(serving(seen))
        self.lacks = seen.notices.get(self._service, "") or self.lacks
        return False


def settled(response: ScaleResponse, *, all_replaced: bool, version: str) -> Goal:
    """The goal of exactly the target's instances, all of them serving, without a rollout."""
    target = response.target_replicas

    def reached(seen: InstancesResponse) -> bool:
        return seen.total == target == len(serving(seen)) and not seen.rolling

    return Goal(
        count=target,
        reached=reached,
        settled=True,
        known={info.id for info in response.instances},
        accepted=True,
        all_replaced=all_replaced,
        version=version,
    )


def serving(seen: InstancesResponse) -> set[str]:
    """The ids of the instances that are Ready or Busy."""
    return {info.id for info in seen.instances if info.state in _SERVING}


def _routing_gap(
    goal: Goal, seen: InstancesResponse, known: AbstractSet[str], routes: RouteWatch
) -> str:
    """How the routes of gateways differ from the goal, and the alerts of the hosts; "" if they do
    not.
    """
    ready = serving(seen)
    unrouted = routes.unrouted(ready)
    if not goal.settled and len(ready) - len(unrouted) >= goal.count:
        return ""
    left = (
        routes.not_withdrawn(known - {info.id for info in seen.instances}) if goal.settled else ()
    )
    blocked = {f"{each} ({why})" if (why := routes.blocker(each)) else each for each in unrouted}
    gaps = [
        f"{text}: {', '.join(sorted(ids)[:_NAMED])}{', …' if len(ids) > _NAMED else ''}"
        for text, ids in (
            ("Ready, but gateways do not route to them", blocked),
            ("ended, but gateways still route to them", left),
        )
        if ids
    ]
    if not gaps:
        return ""
    hosts = [f"{of}: {text}" for of, text in seen.notices.items() if of.startswith("host ")]
    return "; ".join([*gaps, *hosts[:_NAMED]])
