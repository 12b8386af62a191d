"""The flags ``--since`` and ``--until``: where reading stored events or logs begins and ends."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from bridge.bus.jetstream.start_position import Start
from bridge.errors import ConfigError, ProtocolError
from bridge.protocol import now, parse_time

_SECONDS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_WORDS: Final = {
    **dict.fromkeys(("millisecond", "milliseconds", "msec"), "ms"),
    **dict.fromkeys(("second", "seconds", "sec", "secs"), "s"),
    **dict.fromkeys(("minute", "minutes", "min", "mins"), "m"),
    **dict.fromkeys(("hour", "hours", "hr", "hrs"), "h"),
    **dict.fromkeys(("day", "days"), "d"),
    **dict.fromkeys(("week", "weeks"), "w"),
}
_PART: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([a-z]+)\s*")
_CLOCK: Final = re.compile(r"([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))?")
_LONGEST: Final = 100 * 365 * 86400  # seconds; a much longer time begins before the year 1
_FUTURE: Final = timedelta(minutes=1)  # of a time, which another clock may have shown


def parse_since(text: str) -> Start | int | timedelta | datetime:
    """The begin that `text` names: ``all``, a stream sequence (``1234``), a time ago (``90s``,
    ``1h30m``, ``1.5h``, ``500ms``, ``10 minutes ago``) or a time (RFC 3339, ``2026-11-21 09:00``,
    ``2026-11-21``, ``today``, ``yesterday``, or ``14:00``, which is the last 14:00 that has passed;
    without an offset it is this machine's).

    Raises ConfigError for anything else.
    """
    given = text.strip()
    if given.lower() == "all":
        return Start.FIRST
    if given.lower() == "now":
        return Start.NOW
    if re.fullmatch(r"[0-9]{1,18}", given):
        return max(int(given), 1)
    return _moment("--since", given, "all, a stream sequence, ")


def parse_until(text: str) -> datetime:
    """The end that `text` names: ``now``, a time ago or a time, as in `parse_since`; in UTC.

    Raises ConfigError for anything else.
    """
    return _in_time("--until", text.strip(), "now, ")


def parse_log_since(text: str) -> datetime | None:
    """The begin of a log that `text` names: ``all`` (None), a time ago or a time, as in
    `parse_since`; in UTC. Raises ConfigError for anything else.
    """
    given = text.strip()
    return None if given.lower() == "all" else _in_time("--since", given, "all, ")


def _in_time(flag: str, given: str, others: str) -> datetime:
    """The time that `given` names."""
    if given.lower() == "now":
        return now()
    moment = _moment(flag, given, others)
    return now() - moment if isinstance(moment, timedelta) else moment


def _moment(flag: str, given: str, others: str) -> timedelta | datetime:
    """A time ago, or a time in UTC that is not in the future. Raises ConfigError; `others` are what
    the flag takes beside these.
    """
    moment: timedelta | datetime | None = _ago(flag, given)
    if moment is None and (moment := _time(given)) is None:
        raise ConfigError(
            flag,
            f"{given!r} is none of: {others}a time ago such as 90s, 10m, 1h30m, 7d "
            "(units ms, s, m, h, d, w), or a time such as 14:00, 2026-11-21 or "
            "2026-11-21T09:00:00Z",
        )
    if isinstance(moment, datetime) and moment > now() + _FUTURE:
        raise ConfigError(flag, f"{given!r} lies in the future")
    return moment


def _ago(flag: str, text: str) -> timedelta | None:
    """A length of time, with ``-`` before it, ``ago`` after it, or neither; None if it is none."""
    rest = re.sub(r"\s*ago$", "", text.removeprefix("-"))
    seconds, at = 0.0, 0
    while at < len(rest):
        part = _PART.match(rest, at)
        unit = part and _WORDS.get(part[2], part[2])
        if part is None or unit not in _SECONDS:
            return None
        seconds += float(part[1]) * _SECONDS[unit]
        at = part.end()
    if seconds > _LONGEST:
        raise ConfigError(flag, f"{text} is longer than any stream keeps; use all")
    return timedelta(seconds=seconds) if rest else None


def _time(text: str) -> datetime | None:
    """A moment, in UTC; None if it is none."""
    midnight = now().astimezone().replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    days = {"today": midnight, "yesterday": midnight - timedelta(days=1)}
    if match := _CLOCK.fullmatch(text):
        hour, minute, second = (int(part or 0) for part in match.groups())
        return _last(midnight, hour, minute, second)
    try:
        return parse_time(text)
    except ProtocolError:
        pass
    try:
        return (days.get(text.lower()) or datetime.fromisoformat(text)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _last(midnight: datetime, hour: int, minute: int, second: int) -> datetime | None:
    """The last time that has passed at which this machine's clock showed so; None for no time."""
    try:
        today = midnight.replace(hour=hour, minute=minute, second=second).astimezone(UTC)
        if today <= now():
            return today
        yesterday = midnight - timedelta(days=1)
        return yesterday.replace(hour=hour, minute=minute, second=second).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
