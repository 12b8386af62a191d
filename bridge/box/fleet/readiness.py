"""When this Box may answer requests, decide and plan: while no check finds a blocker."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from msgspec import Struct


class Check(Struct, frozen=True):
    """One condition of readiness. `blocker` says in a sentence why it does not hold, else None.

    A `local` check is about this host alone: while it fails, the host can make nothing. Without
    `stops_plans` this host's instances still drain and its slots are still given up.
    """

    name: str
    blocker: Callable[[], str | None]
    local: bool = False
    stops_plans: bool = True


class Readiness:
    """Runs the checks, in their order; the first blocker is the one reported.

    The host is in trouble while a local check fails, or if the checks have not all passed for
    `patience` seconds.
    """

    def __init__(self, checks: Sequence[Check], patience: float) -> None:
        self._checks = checks
        self._patience = patience
        self._passed_at = time.monotonic()
        self._stopping = False

    def blocker(self) -> str | None:
        """Why this Box must not answer requests now."""
        return "this Box is stopping" if self._stopping else self.decide_blocker()

    def decide_blocker(self) -> str | None:
        """Why this Box must not decide now: what it sees may not be current."""
        return _first_blocker(self._checks)

    def may_plan(self) -> bool:
        """Whether this Box may carry out plans: what it sees is current."""
        return _first_blocker([check for check in self._checks if check.stops_plans]) is None

    def may_make(self) -> bool:
        """Whether this host may claim slots and make instances."""
        return self.decide_blocker() is None

    def trouble(self) -> str | None:
        """Why nothing can be made on this host, and not only for a moment."""
        if local := _first_blocker([check for check in self._checks if check.local]):
            return local
        lasting = time.monotonic() - self._passed_at > self._patience
        return self.decide_blocker() if lasting else None

    def refresh(self) -> None:
        """Note whether all checks pass now; call it every half second or so."""
        if self.may_make():
            self._passed_at = time.monotonic()

    def stop(self) -> None:
        """Answer no more requests; planning goes on, because instances have to drain."""
        self._stopping = True


def _first_blocker(checks: Sequence[Check]) -> str | None:
    return next((blocker for check in checks if (blocker := check.blocker())), None)
