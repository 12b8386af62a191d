"""The flag ``--since``: where reading stored events begins."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final

from bridge.bus.jetstream.follower import Start
from bridge.errors import ConfigError

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST: Final = 100 * 365 * 86400  # seconds; a much longer time begins before the year 1


def parse_since(text: str) -> Start | int | timedelta:
    """The begin that `text` names: ``all``, a stream sequence (``1234``) or a time ago (``90s``,
    ``10m``, ``2h``, ``7d``).

    Raises ConfigError for anything else.
    """
    if text == "all":
        return Start.FIRST
    parts = re.fullmatch(r"([0-9]{1,18})([smhd]?)", text)
    if parts is None:
        raise ConfigError("--since", f"{text!r} is neither all, nor a sequence, nor like 10m")
    number, unit = int(parts[1]), parts[2]
    if not unit:
        return max(number, 1)
    if number * _UNITS[unit] > _LONGEST:
        raise ConfigError("--since", f"{text} is longer than any stream keeps; use all")
    return timedelta(seconds=number * _UNITS[unit])
