"""One log line a minute for each cause."""

from __future__ import annotations

import logging

import pytest

from bridge.errors import NoReply, StoreRefused
from bridge.log_limit import LimitedLog, cause_of

_logger = logging.getLogger(__name__)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_cause_is_logged_once_a_minute_with_the_number_of_lines_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    log = LimitedLog(_logger, monotonic=clock)
    for number in range(40):
        assert log.report("full", "storing %d failed", number) == (number == 0)
        clock.now += 1
    assert caplog.messages == ["storing 0 failed"]
    clock.now += 21
    log.report("full", "storing %d failed", 40)
    assert caplog.messages[1:] == ["storing 40 failed (and 39 more like this in the last 61 s)"]
    clock.now += 61
    log.report("full", "storing %d failed", 41)
    assert caplog.messages[2:] == ["storing 41 failed"]


def test_each_cause_has_its_own_line_and_one_that_ended_is_logged_again_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = LimitedLog(_logger, monotonic=Clock())
    log.report("full", "full")
    log.report("cut off", "cut off", level=logging.ERROR)
    log.end("full")
    log.report("full", "full again")
    assert caplog.messages == ["full", "cut off", "full again"]
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR", "WARNING"]


def test_the_causes_kept_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    log = LimitedLog(_logger, monotonic=Clock())
    for number in range(1000):
        log.report(number, "%d", number)
    assert len(log._causes) == 256
    assert not log.report(999, "again")
    assert log.report(0, "forgotten")


def test_errors_about_several_subjects_have_one_cause() -> None:
    assert cause_of(NoReply("box.a", 1.0)) == cause_of(NoReply("box.b", 2.0))
    assert cause_of(StoreRefused("a", 10023, "")) != cause_of(StoreRefused("a", 10077, ""))
