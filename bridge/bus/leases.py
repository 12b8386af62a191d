"""Leases: which holders are alive, by this process's own monotonic clock. Pure.

A deadline alone is not enough: after an outage every lease looks expired although no holder died.
Therefore no lease expires while the view is not live, and each completed resync and each stall of
the event loop renew all leases.
"""

from __future__ import annotations

import math
from collections.abc import Container, Hashable
from collections.abc import Set as AbstractSet
from typing import Final, Generic, TypeVar

H = TypeVar("H", bound=Hashable)

STALL: Final = 1.5  # seconds between two ticks that mean that the event loop stalled
MANY: Final = 2  # holders that expire at once are too many: so many at least, and half of all


class Leases(Generic[H]):
    """Leases of `lease` seconds; `now` is always a monotonic time in seconds.

    A tick checks the holders only if one of them may be due. If all renew in time, that is once or
    twice per lease, regardless of the number of ticks.
    """

    def __init__(self, lease: float) -> None:
        self._lease = lease
        self._deadlines: dict[H, float] = {}
        self._soonest = math.inf  # a lower bound of all deadlines
        self._last_tick: float | None = None

    @property
    def holders(self) -> AbstractSet[H]:
        """The holders whose lease runs."""
        return self._deadlines.keys()

    def renew(self, holder: H, now: float) -> None:
        """Start a lease of `holder` at `now`."""
        self._deadlines[holder] = deadline = now + self._lease
        if deadline < self._soonest:
            self._soonest = deadline

    def take_over(self, deadlines: dict[H, float]) -> None:
        """Add holders with their deadlines. Takes ownership of `deadlines`."""
        self._soonest = min(self._soonest, min(deadlines.values(), default=math.inf))
        if self._deadlines:
            self._deadlines.update(deadlines)
        else:
            self._deadlines = deadlines

    def release(self, holder: H) -> None:
        """End the lease of `holder`, which gave it back."""
        self._deadlines.pop(holder, None)

    def rearm(self, now: float) -> None:
        """Renew every lease at `now`: no renewal could arrive before."""
        deadline = now + self._lease
        self._deadlines.update(dict.fromkeys(self._deadlines, deadline))
        self._soonest = deadline

    def due(self, by: float) -> list[H]:
        """The holders whose lease expires at `by` or before."""
        if by < self._soonest:
            return []
        self._soonest = min(self._deadlines.values(), default=math.inf)
        return [holder for holder, deadline in self._deadlines.items() if deadline <= by]

    def tick(self, now: float, *, live: bool) -> list[H]:
        """Remove and return the holders whose lease has expired. Call it each second."""
        stalled = self._last_tick is not None and now - self._last_tick > STALL
        self._last_tick = now
        if not live:
            return []
        if stalled:
            self.rearm(now)
        expired = self.due(now)
        for holder in expired:
            del self._deadlines[holder]
        return expired


class WatchedLeases(Leases[H]):
    """Leases of holders that are replaced when they are dead.

    A holder counts as dead only if this observer has watched for a whole lease without a gap. After
    the leases of all holders expired, no holder could renew: the watch starts again with the first
    renewal. If half of the holders or more (at least two) expire at once, a failure that they share
    is more likely than their deaths: each of them gets one lease more, even if others are back by
    then.
    """

    def __init__(self, lease: float) -> None:
        super().__init__(lease)
        self._expiries: dict[H, float] = {}  # when the lease of a holder expired
        self._wave: set[H] = set()
        self._silence = False  # the leases of all holders have expired
        self._watched_since: float | None = None

    def renew(self, holder: H, now: float) -> None:
        super().renew(holder, now)
        if self._silence:
            self._silence = False
            self._watched_since = now
        self._expiries.pop(holder, None)
        self._wave.discard(holder)

    def release(self, holder: H) -> None:
        """End the lease of `holder`, which gave it back: it may be replaced at once."""
        if holder in self._deadlines:
            self._expiries[holder] = float("-inf")
        self._wave.discard(holder)
        super().release(holder)

    def expect(self, holder: H, now: float) -> None:
        """Start a lease of `holder` at `now` if it is unknown: a record shows that it was alive."""
        if holder not in self._expiries and holder not in self._deadlines:
            self.renew(holder, now)

    def forget(self, holder: H) -> None:
        """Forget the expiry of `holder`."""
        self._expiries.pop(holder, None)
        self._wave.discard(holder)

    def forget_past(self, now: float, needed: Container[H]) -> None:
        """Forget the expiries that are a lease old, and so belong to no wave any more, of holders
        that are not `needed`: holders may come under ever new names.
        """
        past = self._expiries.keys() - self._recent(now)
        for holder in [holder for holder in past if holder not in needed]:
            self.forget(holder)

    def rearm(self, now: float) -> None:
        super().rearm(now)
        self._watched_since = now

    def tick(self, now: float, *, live: bool) -> list[H]:
        if not live:
            self._watched_since = None
        elif self._watched_since is None:
            self._watched_since = now
        expired = super().tick(now, live=live)
        self._expiries.update(dict.fromkeys(expired, now))
        if live and self._expiries:
            self._find_wave(now)
        if expired and not self._deadlines:
            self._silence = True
        return expired

    def dead(self, now: float) -> set[H]:
        """The holders that may be replaced: see the class. A direct read must confirm it."""
        if not self._expiries:
            return set()
        if self._watched_since is None or now - self._watched_since < self._lease:
            return set()
        return self._expiries.keys() - (self._wave & self._recent(now))

    def _find_wave(self, now: float) -> None:
        recent = self._recent(now)
        # A holder without a renewal for half a lease missed one, and may belong to the wave.
        silent = self.due(now + self._lease / 2)
        wave = len(recent) + len(silent)
        if wave >= MANY and wave * 2 >= len(recent) + len(self._deadlines):
            self._wave.update(recent, silent)

    def _recent(self, now: float) -> set[H]:
        """The holders whose lease expired less than a lease ago."""
        return {holder for holder, at in self._expiries.items() if now - at < self._lease}
