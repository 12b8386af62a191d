"""Which holders of a lease are alive, by this process's own monotonic clock. Pure.

A deadline plus a read is not enough: after an outage every lease looks run out, and nobody is
dead. So no deadline is judged while the view is not live, and each completed resync, and each
stall of the own loop, arms all deadlines anew.
"""

from __future__ import annotations

from collections.abc import Hashable
from collections.abc import Set as AbstractSet
from typing import Final, Generic, TypeVar

H = TypeVar("H", bound=Hashable)

STALL: Final = 1.5  # seconds between two ticks that say the own loop stood still


class Leases(Generic[H]):
    """Leases of `lease` seconds; `now` is always a monotonic time in seconds."""

    def __init__(self, lease: float) -> None:
        self._lease = lease
        self._deadlines: dict[H, float] = {}
        self._last_tick: float | None = None

    @property
    def holders(self) -> AbstractSet[H]:
        """Who is held to be alive."""
        return self._deadlines.keys()

    def renew(self, holder: H, now: float) -> None:
        """`holder` has just been heard of."""
        self._deadlines[holder] = now + self._lease

    def release(self, holder: H) -> None:
        """`holder` gave its lease back."""
        self._deadlines.pop(holder, None)

    def rearm(self, now: float) -> None:
        """Everybody known has a whole lease from `now`: nothing could be heard until now."""
        for holder in self._deadlines:
            self._deadlines[holder] = now + self._lease

    def due(self, by: float) -> list[H]:
        """The holders whose lease will have run out by then."""
        return [holder for holder, deadline in self._deadlines.items() if deadline <= by]

    def tick(self, now: float, *, live: bool) -> list[H]:
        """The holders whose lease has just run out; they are forgotten. Call it every second."""
        stalled = self._last_tick is not None and now - self._last_tick > STALL
        self._last_tick = now
        if not live:
            return []
        if stalled:
            self.rearm(now)
        gone = self.due(now)
        for holder in gone:
            del self._deadlines[holder]
        return gone
