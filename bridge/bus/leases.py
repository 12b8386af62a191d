"""Which holders of a lease are alive, by this process's own monotonic clock. Pure.

A deadline plus a read is not enough: after an outage every lease looks run out, and nobody is
dead. So no deadline is judged while the view is not live, and each completed resync, and each
stall of the own loop, arms all deadlines anew.

Who is gone may be replaced only by an observer that has watched unbroken for one whole lease. When
half of the holders or more (at least two) vanish at once, it is likelier that something else has
failed than that they all have died: then it waits one lease more.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Final

STALL: Final = 1.5  # seconds between two ticks that say the own loop stood still
MANY: Final = 2  # holders; and half of all


class Leases:
    """Leases of `lease` seconds; `now` is always a monotonic time in seconds."""

    def __init__(self, lease: float) -> None:
        self._lease = lease
        self._deadlines: dict[str, float] = {}
        self._gone: dict[str, float] = {}
        self._watched_since: float | None = None
        self._last_tick: float | None = None

    @property
    def holders(self) -> AbstractSet[str]:
        """Who is held to be alive."""
        return self._deadlines.keys()

    def renew(self, holder: str, now: float) -> None:
        """`holder` has just been heard of."""
        self._deadlines[holder] = now + self._lease
        self._gone.pop(holder, None)

    def expect(self, holder: str, now: float) -> None:
        """Something says that `holder` has lived: unless it is known, its lease runs from now."""
        if holder not in self._gone:
            self._deadlines.setdefault(holder, now + self._lease)

    def release(self, holder: str, now: float) -> None:
        """`holder` gave its lease back: it is gone, and did not vanish."""
        if self._deadlines.pop(holder, None) is not None:
            self._gone[holder] = now - self._lease

    def forget(self, holder: str) -> None:
        """Nothing is asked about `holder` any more."""
        self._gone.pop(holder, None)

    def rearm(self, now: float) -> None:
        """Everybody known has a whole lease from `now`: nothing could be heard until now."""
        self._watched_since = now
        for holder in self._deadlines:
            self._deadlines[holder] = now + self._lease

    def tick(self, now: float, *, live: bool) -> list[str]:
        """The holders whose lease has just run out. Call it every second."""
        stalled = self._last_tick is not None and now - self._last_tick > STALL
        self._last_tick = now
        if not live:
            self._watched_since = None
            return []
        if stalled:
            self.rearm(now)
        elif self._watched_since is None:
            self._watched_since = now
        gone = [holder for holder, deadline in self._deadlines.items() if deadline <= now]
        for holder in gone:
            del self._deadlines[holder]
            self._gone[holder] = now
        return gone

    def dead(self, now: float) -> set[str]:
        """The holders that may be replaced: see the module. A direct read has to confirm it."""
        if self._watched_since is None or now - self._watched_since < self._lease:
            return set()
        recent = [holder for holder, at in self._gone.items() if now - at < self._lease]
        # Who is silent for half a lease has missed a renewal, and may be of the same wave.
        silent = sum(deadline - now < self._lease / 2 for deadline in self._deadlines.values())
        wave = len(recent) + silent
        many = wave >= MANY and wave * 2 >= len(recent) + len(self._deadlines)
        return self._gone.keys() - (recent if many else ())
