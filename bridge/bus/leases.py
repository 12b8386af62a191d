"""Which holders of a lease are alive, by this process's own monotonic clock. Pure.

A deadline plus a read is not enough: after an outage every lease looks run out, and nobody is
dead. So no deadline is judged while the view is not live, and each completed resync, and each
stall of the own loop, arms all deadlines anew.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from collections.abc import Set as AbstractSet
from typing import Final, Generic, TypeVar

H = TypeVar("H", bound=Hashable)

STALL: Final = 1.5  # seconds between two ticks that say the own loop stood still
MANY: Final = 2  # holders; and half of all


class Leases(Generic[H]):
    """Leases of `lease` seconds; `now` is always a monotonic time in seconds.

    A tick looks at the holders only when one of them may be due: where they all renew in time, once
    or twice a lease, however often it ticks.
    """

    def __init__(self, lease: float) -> None:
        self._lease = lease
        self._deadlines: dict[H, float] = {}
        self._soonest = math.inf  # no deadline lies before it
        self._last_tick: float | None = None

    @property
    def holders(self) -> AbstractSet[H]:
        """Who is held to be alive."""
        return self._deadlines.keys()

    def renew(self, holder: H, now: float) -> None:
        """`holder` has just been heard of."""
        self._deadlines[holder] = deadline = now + self._lease
        if deadline < self._soonest:
            self._soonest = deadline

    def take_over(self, deadlines: dict[H, float]) -> None:
        """These holders' leases run out then. Keeps `deadlines`."""
        self._soonest = min(self._soonest, min(deadlines.values(), default=math.inf))
        if self._deadlines:
            self._deadlines.update(deadlines)
        else:
            self._deadlines = deadlines

    def release(self, holder: H) -> None:
        """`holder` gave its lease back."""
        self._deadlines.pop(holder, None)

    def rearm(self, now: float) -> None:
        """Everybody known has a whole lease from `now`: nothing could be heard until now."""
        deadline = now + self._lease
        self._deadlines.update(dict.fromkeys(self._deadlines, deadline))
        self._soonest = deadline

    def due(self, by: float) -> list[H]:
        """The holders whose lease will have run out by then."""
        if by < self._soonest:
            return []
        self._soonest = min(self._deadlines.values(), default=math.inf)
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


class WatchedLeases(Leases[H]):
    """Leases of holders that somebody replaces when they are dead.

    That takes an observer who has watched unbroken for one whole lease, and who is a holder itself:
    when the leases of all have run out, nobody could renew, and the watch begins anew with the
    first who can. When half of the holders or more (at least two) vanish at once, it is likelier
    that something else has failed than that they all have died: then it waits one lease more for
    each of them, though others may be back by then, as whatever failed has failed for all.
    """

    def __init__(self, lease: float) -> None:
        super().__init__(lease)
        self._gone: dict[H, float] = {}
        self._wave: set[H] = set()
        self._silence = False  # the leases of all have run out
        self._watched_since: float | None = None

    def renew(self, holder: H, now: float) -> None:
        super().renew(holder, now)
        if self._silence:
            self._silence = False
            self._watched_since = now
        self._gone.pop(holder, None)
        self._wave.discard(holder)

    def release(self, holder: H) -> None:
        """`holder` gave its lease back: it is gone, and did not vanish."""
        if holder in self._deadlines:
            self._gone[holder] = float("-inf")
        self._wave.discard(holder)
        super().release(holder)

    def expect(self, holder: H, now: float) -> None:
        """Something says that `holder` has lived: unless it is known, its lease runs from now."""
        if holder not in self._gone and holder not in self._deadlines:
            self.renew(holder, now)

    def forget(self, holder: H) -> None:
        """Nothing is asked about `holder` any more, should it be gone."""
        self._gone.pop(holder, None)
        self._wave.discard(holder)

    def rearm(self, now: float) -> None:
        super().rearm(now)
        self._watched_since = now

    def tick(self, now: float, *, live: bool) -> list[H]:
        if not live:
            self._watched_since = None
        elif self._watched_since is None:
            self._watched_since = now
        gone = super().tick(now, live=live)
        self._gone.update(dict.fromkeys(gone, now))
        if live and self._gone:
            self._find_wave(now)
        if gone and not self._deadlines:
            self._silence = True
        return gone

    def dead(self, now: float) -> set[H]:
        """The holders that may be replaced: see the class. A direct read has to confirm it."""
        if not self._gone:
            return set()
        if self._watched_since is None or now - self._watched_since < self._lease:
            return set()
        return self._gone.keys() - (self._wave & self._recent(now))

    def _find_wave(self, now: float) -> None:
        recent = self._recent(now)
        # Who is silent for half a lease has missed a renewal, and may be of the same wave.
        silent = self.due(now + self._lease / 2)
        wave = len(recent) + len(silent)
        if wave >= MANY and wave * 2 >= len(recent) + len(self._deadlines):
            self._wave.update(recent, silent)

    def _recent(self, now: float) -> set[H]:
        """Who has been gone for less than a lease."""
        return {holder for holder, at in self._gone.items() if now - at < self._lease}
