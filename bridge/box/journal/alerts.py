"""Alerts: what on this host needs a person's attention, as sentences.

A live Box publishes its alerts with its lease. For a Box that cannot be reached, they are read from
its journal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from bridge.box.journal.journal import Journal
from bridge.box.journal.outbox import Outbox
from bridge.box.journal.store import CUT_OFF, DROPPED, SET_ASIDE, Snapshot
from bridge.observe import Metrics
from bridge.protocol import format_time

_MAX_DELAY: Final = 5.0  # seconds that an event may wait before an alert mentions it


class Alerts:
    """The alerts of a live Box; also exports the age of its backlog as a metric.

    `trouble` returns why this host cannot make instances, each of `checks` another problem, or
    None.
    """

    def __init__(
        self,
        journal: Journal,
        outbox: Outbox,
        metrics: Metrics,
        clock: Callable[[], datetime],
        trouble: Callable[[], str | None],
        checks: Sequence[Callable[[], str | None]] = (),
    ) -> None:
        self._journal = journal
        self._outbox = outbox
        self._trouble = trouble
        self._checks = checks
        self._clock = clock
        metrics.backlog_age.set_function(self._age)

    def all(self) -> list[str]:
        """The current alerts."""
        journal = self._journal
        alerts = _list_facts({SET_ASIDE: journal.set_aside})
        alerts += _describe_rejected(
            journal.rejected, journal.rejected_because, journal.rejected_dropped
        )
        alerts += [problem for check in self._checks if (problem := check())]
        if self._age() > _MAX_DELAY:
            waiting = _describe_backlog(journal.backlog, self._outbox.oldest)
            why = self._outbox.problem
            alerts.append(f"{waiting}: {why}" if why else waiting)
        return [*alerts, trouble] if (trouble := self._trouble()) else alerts

    def _age(self) -> float:
        """Seconds since the oldest event that the stream has not stored; 0 without a backlog."""
        oldest = self._outbox.oldest
        return max(0.0, (self._clock() - oldest).total_seconds()) if oldest else 0.0


def list_alerts(snapshot: Snapshot, *, alive_at: datetime | None = None) -> list[str]:
    """The alerts in a journal, for a Box that cannot be reached.

    For a Box that is alive at `alive_at`, events of the last 5 s are on their way: no alert.
    """
    alerts, oldest = _list_facts(snapshot.facts), snapshot.oldest
    alerts += _describe_rejected(*snapshot.rejected, int(snapshot.facts.get(DROPPED, "0")))
    under_way = alive_at and oldest and (alive_at - oldest).total_seconds() <= _MAX_DELAY
    if snapshot.backlog and not under_way:
        alerts.append(_describe_backlog(snapshot.backlog, oldest))
    return alerts


def _list_facts(facts: Mapping[str, str]) -> list[str]:
    alerts = []
    if since := facts.get(CUT_OFF):
        alerts.append(f"cut off from NATS since {since}")
    if (aside := facts.get(SET_ASIDE)) and _may_exist(Path(aside)):
        alerts.append(f"a damaged journal was set aside as {aside}: inspect it, then delete it")
    return alerts


def _describe_rejected(count: int, reason: str, dropped: int) -> list[str]:
    if not count:
        return []
    noun = "1 event" if count == 1 else f"{count} events"
    older = f"; {dropped} older ones had to make room" if dropped else ""
    return [
        f"{noun} can never be stored, kept in the journal{older}; the last one because: {reason}"
    ]


def _may_exist(path: Path) -> bool:
    """Whether the file exists; True where that cannot be checked. Deleting it ends the alert."""
    try:
        return path.exists()
    except OSError:
        return True


def _describe_backlog(count: int, oldest: datetime | None) -> str:
    since = f", the oldest since {format_time(oldest)}" if oldest else ""
    return f"{count} {'event waits' if count == 1 else 'events wait'} to be published{since}"
