"""Which process this is: a pid alone is recycled, and says nothing after a reboot."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

from msgspec import Struct

_STATE: Final = 0  # fields of /proc/<pid>/stat after the command's closing bracket: proc(5), 3
_STARTED: Final = 19  # and 22, less the first three
_DEAD: Final = ("Z", "X")


class ProcessIdentity(Struct, frozen=True, kw_only=True):
    """A process for good: its pid, when it started (clock ticks after the boot), and which boot.

    No two processes of one host share all three.
    """

    pid: int
    started: int
    boot_id: str


GONE: Final = ProcessIdentity(pid=0, started=0, boot_id="")
"""A process that is no more, and of which nothing else is known."""


def identify(pid: int) -> ProcessIdentity | None:
    """The process that has `pid` now; None if there is none, or if it is dead but not reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    if not fields or fields[_STATE] in _DEAD:
        return None
    return ProcessIdentity(pid=pid, started=int(fields[_STARTED]), boot_id=boot_id())


def is_alive(identity: ProcessIdentity) -> bool:
    """Whether that very process lives."""
    return identify(identity.pid) == identity


@cache
def boot_id() -> str:
    """The kernel's name for this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
