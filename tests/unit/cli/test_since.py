"""--since as people know it from docker, kubectl and journalctl."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from bridge.bus.jetstream.start_position import Start
from bridge.cli.since import parse_since, parse_until
from bridge.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("0s", 0),
        ("10m", 600),
        ("7d", 7 * 86400),
        ("1w", 7 * 86400),
        ("500ms", 0.5),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("1.5h", 5400),
        ("-10m", 600),
        ("10 minutes ago", 600),
        ("10min", 600),
        ("1 day ago", 86400),
        ("2 hours", 7200),
        ("2h ago", 7200),
    ],
)
def test_a_time_ago_may_be_written_in_each_usual_way(text: str, seconds: float) -> None:
    assert parse_since(text) == timedelta(seconds=seconds)


def test_all_now_and_a_sequence_are_begins_of_their_own() -> None:
    assert parse_since("all") is Start.FIRST
    assert parse_since("ALL") is Start.FIRST
    assert parse_since("now") is Start.NOW
    assert parse_since("17") == 17
    assert parse_since("0") == 1


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2021-11-21T09:00:00Z", datetime(2021, 11, 21, 9, tzinfo=UTC)),
        ("2021-11-21T09:00:00.5+01:00", datetime(2021, 11, 21, 8, 0, 0, 500_000, tzinfo=UTC)),
        ("2021-11-21 09:00:00 UTC", datetime(2021, 11, 21, 9, tzinfo=UTC)),
        ("2021-11-21T09:00Z", datetime(2021, 11, 21, 9, tzinfo=UTC)),
        ("2021-11-21", datetime(2021, 11, 21, 8, tzinfo=UTC)),
        ("2021-11-21T09:00:00", datetime(2021, 11, 21, 17, tzinfo=UTC)),
        ("2021-11-21 09:00", datetime(2021, 11, 21, 17, tzinfo=UTC)),
    ],
)
def test_a_time_without_an_offset_is_this_machine_s(
    text: str, at: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "PST8")
    time.tzset()
    try:
        assert parse_since(text) == at
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_day_may_be_named() -> None:
    today, yesterday = parse_since("today"), parse_since("yesterday")
    assert isinstance(today, datetime)
    assert isinstance(yesterday, datetime)
    assert timedelta(hours=22) < today - yesterday < timedelta(hours=26)
    assert timedelta() <= datetime.now(UTC) - today < timedelta(hours=26)


@pytest.mark.parametrize(
    "wrong", ["", "10x", "10M", "-1", "m", "ago", "999999999999d", "٣", "tomorrow", "1h30", "1,5h"]
)
def test_anything_else_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match="--since"):
        parse_since(wrong)


def test_a_time_to_come_is_refused() -> None:
    with pytest.raises(ConfigError, match="in the future"):
        parse_since("9000-01-01")


def test_a_clock_time_is_the_last_one_that_has_passed() -> None:
    at = datetime.now(UTC).astimezone()
    passed, ahead = at - timedelta(minutes=1), at + timedelta(minutes=2)
    for moment in (passed, ahead):
        found = parse_since(f"{moment:%H:%M}")
        assert isinstance(found, datetime)
        assert timedelta() <= datetime.now(UTC) - found < timedelta(days=1, hours=1)
        assert f"{found.astimezone():%H:%M}" == f"{moment:%H:%M}"
    with pytest.raises(ConfigError, match="--until"):
        parse_until("24:61")


def test_until_is_a_time_or_a_time_ago() -> None:
    assert timedelta(minutes=9) < datetime.now(UTC) - parse_until("10m") < timedelta(minutes=11)
    assert parse_until("2021-11-21T09:00Z") == datetime(2021, 11, 21, 9, tzinfo=UTC)
    for text in ("all", "17", "2199-01-01"):
        with pytest.raises(ConfigError, match="--until"):
            parse_until(text)
