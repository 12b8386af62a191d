"""The picture of lives over time."""

from __future__ import annotations

from datetime import timedelta

from bridge.cli.timeline import timeline
from bridge.protocol import InstanceEvent, InstanceState
from tests.unit.fleets import AT

S = InstanceState


def event(name: str, from_state: S, to_state: S, seconds: float) -> InstanceEvent:
    at = AT + timedelta(seconds=seconds)
    return InstanceEvent.transition(name, "web", from_state, to_state, at=at)


def test_each_instance_has_a_row_in_scale() -> None:
    rows = timeline(
        [
            event("web-a", S.CREATING, S.BOOTING, 0),
            event("web-b", S.CREATING, S.BOOTING, 5),
            event("web-a", S.BOOTING, S.READY, 2),
            event("web-a", S.READY, S.FAILED, 5),
            event("web-b", S.BOOTING, S.READY, 10),
        ],
        width=10,
    )
    assert [row.plain for row in rows[:2]] == ["web-a ░░███✗    ", "web-b      ░░░░█"]
    assert "10.0s" in rows[2].plain


def test_no_events_are_no_picture() -> None:
    assert [row.plain for row in timeline([])] == ["no events"]
