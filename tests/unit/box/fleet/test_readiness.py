"""Readiness runs its checks: the first blocker counts, and a lasting one is trouble."""

from __future__ import annotations

from bridge.box.fleet.readiness import Check, Readiness


class Conditions:
    """Two conditions that a test can break: the bus, and this host."""

    def __init__(self, *, patience: float = 60.0) -> None:
        self.bus: str | None = None
        self.host: str | None = None
        checks = [Check("bus", lambda: self.bus), Check("host", lambda: self.host, local=True)]
        self.readiness = Readiness(checks, patience)


def test_a_box_is_ready_while_every_check_passes() -> None:
    conditions = Conditions()
    assert conditions.readiness.blocker() is None
    assert conditions.readiness.may_plan()
    conditions.host = "no disk"
    assert conditions.readiness.blocker() == "no disk"
    assert not conditions.readiness.may_plan()


def test_the_first_failing_check_is_reported() -> None:
    conditions = Conditions()
    conditions.bus, conditions.host = "no bus", "no disk"
    assert conditions.readiness.blocker() == "no bus"


def test_a_stopping_box_answers_no_requests_but_plans() -> None:
    readiness = Conditions().readiness
    readiness.stop()
    assert readiness.blocker() == "this Box is stopping"
    assert readiness.may_plan()


def test_a_local_check_is_trouble_at_once_and_others_only_if_they_last() -> None:
    conditions = Conditions()
    conditions.bus = "no bus"
    assert conditions.readiness.trouble() is None
    conditions.host = "no disk"
    assert conditions.readiness.trouble() == "no disk"
    impatient = Conditions(patience=0.0)
    impatient.bus = "no bus"
    assert impatient.readiness.trouble() == "no bus"
