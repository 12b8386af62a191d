"""What of this host needs a person's attention, in sentences.

A living Box tells them to the fleet with its lease; of one that nobody hears, its journal has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

from bridge.box.journal.journal import Journal
from bridge.box.journal.outbox import Outbox
from bridge.box.journal.store import CUT_OFF, SET_ASIDE, Snapshot
from bridge.observe import Metrics
from bridge.protocol import format_time

_PATIENCE: Final = 5.0  # seconds that an event may wait before anybody is told of it


class Alerts:
    """What a living Box has to say of itself: `trouble` is why nothing can be made here. Keeps the
    age of its backlog in the metrics.
    """

    def __init__(
        self,
        journal: Journal,
        outbox: Outbox,
        metrics: Metrics,
        clock: Callable[[], datetime],
        trouble: Callable[[], str | None],
    ) -> None:
        self._journal = journal
        self._outbox = outbox
        self._trouble = trouble
        self._clock = clock
        metrics.backlog_age.set_function(self._age)

    def all(self) -> list[str]:
        """All that is to be said now."""
        said = _of_facts({SET_ASIDE: self._journal.set_aside})
        if self._age() > _PATIENCE:
            said.append(_of_backlog(self._journal.backlog, self._outbox.oldest))
        return [*said, trouble] if (trouble := self._trouble()) else said

    def _age(self) -> float:
        """Seconds since the oldest event happened that is not stored yet; 0 if all are."""
        oldest = self._outbox.oldest
        return max(0.0, (self._clock() - oldest).total_seconds()) if oldest else 0.0


def list_alerts(snapshot: Snapshot, *, alive_at: datetime | None = None) -> list[str]:
    """What the journal has to say for a Box that nobody hears; of one that is alive at that time
    the newest events are on their way, and not worth telling.
    """
    said, oldest = _of_facts(snapshot.facts), snapshot.oldest
    under_way = alive_at and oldest and (alive_at - oldest).total_seconds() <= _PATIENCE
    if snapshot.backlog and not under_way:
        said.append(_of_backlog(snapshot.backlog, oldest))
    return said


def _of_facts(facts: Mapping[str, str]) -> list[str]:
    said = []
    if since := facts.get(CUT_OFF):
        said.append(f"cut off from NATS since {since}")
    # Whoever has removed the file has been told.
    if (aside := facts.get(SET_ASIDE)) and Path(aside).exists():
        said.append(f"a damaged journal was set aside as {aside}: look into it, then remove it")
    return said


def _of_backlog(count: int, oldest: datetime | None) -> str:
    since = f", the oldest since {format_time(oldest)}" if oldest else ""
    return f"{count} {'event waits' if count == 1 else 'events wait'} to be told{since}"
