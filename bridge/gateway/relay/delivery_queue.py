"""The queue of a relay: in order for each instance, with back-off for a receiver that fails.

Each instance has a lane. One event of a lane is sent at a time, and the next one only after its
outcome, so a failing event delays its own instance and no other. If events of two instances or more
fail without a success in between, the receiver itself is out. Then one event at a time is sent, in
turns of the lanes, so that an outage uses up the attempts of few events.

Pure: the time (in seconds of any clock) and the random number (0 to 1) are arguments.
"""

from __future__ import annotations

import bisect
import heapq
from collections import deque
from collections.abc import Iterator
from typing import Final, Generic, Protocol, TypeVar

from msgspec import Struct

from bridge.protocol import InstanceEvent

_OUT: Final = 3  # consecutive failures that make an outage


class Item(Protocol):
    """The part of a delivery that the queue uses."""

    @property
    def event(self) -> InstanceEvent: ...
    @property
    def box_seq(self) -> int: ...
    @property
    def seq(self) -> int: ...


T = TypeVar("T", bound=Item)


class Backoff(Struct, frozen=True, kw_only=True):
    """Seconds before the next attempt: `first`, doubled with each failure up to `most`. Half of it
    is random, so that many relays do not retry at once.
    """

    first: float = 1.0
    most: float = 60.0

    def delay(self, failures: int, chance: float) -> float:
        """The delay after so many consecutive failures."""
        whole = min(self.most, self.first * 2.0 ** min(failures - 1, 30))
        return float(whole * (0.5 + chance / 2))


class QueuedEvent(Struct, Generic[T], eq=False):
    """An event in a lane, and its failed attempts."""

    item: T
    failures: int = 0

    @property
    def place(self) -> tuple[int, int]:
        """The place in its lane: by Box-Seq, or by the stream's sequence without one."""
        return self.item.box_seq, 0 if self.item.box_seq else self.item.seq


class _InstanceQueue(Struct, Generic[T], eq=False):
    name: str
    events: list[QueuedEvent[T]]


class DeliveryQueue(Generic[T]):
    """See the module. The caller reports the outcome of each `next` to `settle` or `fail`."""

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._lanes: dict[str, _InstanceQueue[T]] = {}
        self._ready: deque[_InstanceQueue[T]] = deque()
        self._later: list[tuple[float, int, _InstanceQueue[T]]] = []
        self._turn = 0
        self._under_way = 0
        self._count = 0
        self._hold_until = float("-inf")  # the receiver's Retry-After
        self._probe_at = float("-inf")  # the next attempt in an outage
        self._rounds = 0
        self._failing: set[str] = set()
        self._failures = 0

    def __len__(self) -> int:
        """The number of events, including those that are being sent."""
        return self._count

    def __iter__(self) -> Iterator[QueuedEvent[T]]:
        """All events, in no particular order."""
        for lane in self._lanes.values():
            yield from lane.events

    def __contains__(self, held: QueuedEvent[T]) -> bool:
        lane = self._lanes.get(held.item.event.instance_id)
        return lane is not None and held in lane.events

    @property
    def out(self) -> bool:
        """Whether the receiver seems to be out: too many failures since the last success."""
        return self._failures >= _OUT or len(self._failing) > 1

    def put(self, item: T) -> None:
        """Add an event. If it is queued already (it was delivered again), the new delivery replaces
        the old one: the server waits for its acknowledgement.
        """
        name = item.event.instance_id
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = _InstanceQueue(name, [])
            self._ready.append(lane)
        held = QueuedEvent(item)
        at = bisect.bisect_left(lane.events, held.place, key=lambda one: one.place)
        if at < len(lane.events) and lane.events[at].place == held.place:
            lane.events[at].item = item
            return
        lane.events.insert(at, held)
        self._count += 1

    def next(self, now: float) -> QueuedEvent[T] | None:
        """An event to send now; None if there is none."""
        while self._later and self._later[0][0] <= now:
            self._ready.append(heapq.heappop(self._later)[2])
        if not self._ready or now < self._gate or self._probing:
            return None
        self._under_way += 1
        return self._ready.popleft().events[0]

    def wait(self, now: float) -> float | None:
        """Seconds until `next` may have an event; None if only another call can change that."""
        if self._probing or not (self._ready or self._later):
            return None
        due = now if self._ready else self._later[0][0]
        return max(0.0, due - now, self._gate - now)

    def settle(self, held: QueuedEvent[T], *, succeeded: bool) -> None:
        """Remove the event. `succeeded` means that the receiver answered."""
        self._under_way -= 1
        self._count -= 1
        if succeeded:
            self._recover()
        name = held.item.event.instance_id
        lane = self._lanes[name]
        lane.events.remove(held)
        if lane.events:
            self._ready.append(lane)
        else:
            del self._lanes[name]
            self._failing.discard(name)

    def fail(
        self, held: QueuedEvent[T], now: float, chance: float, retry_after: float | None = None
    ) -> None:
        """Queue the event for another attempt. `retry_after`: the receiver accepts no event of any
        instance for so many seconds.
        """
        self._under_way -= 1
        held.failures += 1
        self._failures += 1
        lane = self._lanes[held.item.event.instance_id]
        self._failing.add(lane.name)
        if retry_after is not None:
            self._hold_until = max(self._hold_until, now + retry_after)
        if len(self._failing) > 1:
            if not self._under_way:
                self._rounds += 1
                self._probe_at = now + self._backoff.delay(self._rounds, chance)
            self._ready.append(lane)
        else:
            self._turn += 1
            due = now + self._backoff.delay(held.failures, chance)
            heapq.heappush(self._later, (due, self._turn, lane))

    @property
    def _gate(self) -> float:
        """The time before which nothing is sent."""
        return max(self._hold_until, self._probe_at)

    @property
    def _probing(self) -> bool:
        """Whether the receiver is out, and an attempt is running."""
        return len(self._failing) > 1 and self._under_way > 0

    def _recover(self) -> None:
        """The receiver answered: events that wait because of the outage are ready."""
        self._failures = self._rounds = 0
        self._probe_at = float("-inf")
        if len(self._failing) > 1:
            self._ready.extend(lane for _, _, lane in self._later)
            self._later.clear()
        self._failing.clear()
