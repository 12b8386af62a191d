"""A library call that fails, for tests of the error boundaries."""

from __future__ import annotations

import errno
import os
from typing import Any, Final

OS_ERRORS: Final = [OSError(number, os.strerror(number)) for number in errno.errorcode]
"""An OSError of every errno."""


class FailingCall:
    """Stands in for a library call, and raises `fault`; `count` counts the calls."""

    def __init__(self, fault: Exception) -> None:
        self.fault = fault
        self.count = 0

    def __call__(self, *_: object, **__: object) -> Any:
        self.count += 1
        raise self.fault
