"""A limit for log lines that repeat: one line a minute for each cause, with a count of the others.

In an outage each instance, stream and retry would log the same reason every second.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from typing import Final

from msgspec import Struct

PERIOD: Final = 60.0  # seconds between two lines about one cause
_MAX_CAUSES: Final = 256  # then the cause that was logged longest ago is forgotten


class _Cause(Struct):
    logged_at: float
    left_out: int = 0


class LimitedLog:
    """Logs to `logger` at most once in `period` seconds for each cause.

    A cause is what the lines have in common: the act and the kind of its error, without the name of
    the instance or the subject. The first line of a cause is logged at once. The next one that is
    logged has the number of lines left out since.
    """

    def __init__(
        self,
        logger: logging.Logger,
        *,
        period: float = PERIOD,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger = logger
        self._period = period
        self._monotonic = monotonic
        self._causes: dict[Hashable, _Cause] = {}

    def report(
        self,
        cause: Hashable,
        message: str,
        *values: object,
        level: int = logging.WARNING,
        exc_info: BaseException | bool | None = None,
    ) -> bool:
        """Log a line, as `logging.Logger.log` does, unless the limit is reached; whether it was
        logged.
        """
        now = self._monotonic()
        known = self._causes.get(cause)
        if known is not None and now - known.logged_at < self._period:
            known.left_out += 1
            return False
        if known is not None and known.left_out:
            message += " (and %d more like this in the last %.0f s)"
            values = (*values, known.left_out, now - known.logged_at)
        self._causes.pop(cause, None)  # the newest one comes last
        self._causes[cause] = _Cause(logged_at=now)
        if len(self._causes) > _MAX_CAUSES:
            del self._causes[next(iter(self._causes))]
        self._logger.log(level, message, *values, exc_info=exc_info)
        return True

    def end(self, cause: Hashable) -> None:
        """The cause is over: its next line is logged at once."""
        self._causes.pop(cause, None)


def cause_of(exc: BaseException) -> tuple[object, ...]:
    """What errors like `exc` have in common: the class, and the code if it carries one."""
    return type(exc).__name__, getattr(exc, "code", None)
