"""The limit of open files: a Box needs one or two descriptors for each instance, and more to work.

Many systems set the soft limit to 1,024 because of programs that use select(2). A Box raises its
own soft limit to the hard one, and its instances get the soft limit that the Box itself had got.
"""

from __future__ import annotations

import contextlib
import errno
import resource
from typing import Final

EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE)
"""The errnos of a process, or of a system, that has no descriptor left."""

_BASE: Final = 64  # a Box needs them beside its instances: files, NATS, probes, metrics
_FOR_EACH: Final = 2  # one watches an instance; another is open now and then, as in a probe

_inherited: list[int] = []


def raise_limit() -> None:
    """Raise the soft limit of this process to its hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if not _inherited:
        _inherited.append(soft)
    with contextlib.suppress(ValueError, OSError):  # the hard limit may be above the kernel's
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def needed(instances: int) -> int:
    """How many descriptors a Box needs with so many instances."""
    return _BASE + _FOR_EACH * instances


def inherited_limit() -> int:
    """The soft limit that this process got when it was started."""
    return _inherited[0] if _inherited else resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def is_exhausted(exc: BaseException) -> bool:
    """Whether `exc`, or what caused it, is a lack of descriptors."""
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in EXHAUSTED:
            return True
        cause = cause.__cause__ or cause.__context__
    return False
