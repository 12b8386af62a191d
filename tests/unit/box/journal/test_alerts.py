"""Alerts from a journal: of a Box that cannot be reached, and of one that is alive."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from bridge.box.journal.alerts import list_alerts
from bridge.box.journal.store import CUT_OFF, Snapshot

AT = datetime(2026, 11, 21, 8, 0, tzinfo=UTC)


def waiting(count: int, age: float) -> Snapshot:
    oldest = AT - timedelta(seconds=age) if count else None
    return Snapshot(entries=[], facts={}, backlog=count, oldest=oldest)


def test_events_that_no_box_publishes_are_an_alert_at_once() -> None:
    assert list_alerts(waiting(0, 0)) == []
    assert list_alerts(waiting(1, 0.1)) == [
        "1 event waits to be published, the oldest since 2026-11-21T07:59:59.900Z"
    ]


def test_events_of_a_live_box_are_no_alert_for_five_seconds() -> None:
    assert list_alerts(waiting(3, 5), alive_at=AT) == []
    [alert] = list_alerts(waiting(3, 6), alive_at=AT)
    assert alert.startswith("3 events wait to be published, the oldest since 2026-11-21T07:59:54")


def test_facts_are_alerts_of_either() -> None:
    cut = Snapshot(entries=[], facts={CUT_OFF: "07:00"}, backlog=0, oldest=None)
    assert list_alerts(cut) == list_alerts(cut, alive_at=AT) == ["cut off from NATS since 07:00"]
