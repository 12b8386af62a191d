"""Process identity across restarts of the Box: a pid alone is reused, and a boot resets it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

from msgspec import Struct

from bridge.descriptors import is_exhausted
from bridge.errors import BoxError

# Fields of /proc/<pid>/stat after the command's closing bracket: 3 and 22 of proc(5), less three.
_STATE: Final = 0
_STARTED: Final = 19
_DEAD: Final = ("Z", "X")


class ProcessIdentity(Struct, frozen=True, kw_only=True):
    """One process: its pid, its start time (clock ticks after the boot), and the boot.

    No two processes of one host share all three.
    """

    pid: int
    started: int
    boot_id: str


GONE: Final = ProcessIdentity(pid=0, started=0, boot_id="")
"""Stands for a process that has ended and of which nothing else is known."""


def identify(pid: int) -> ProcessIdentity | None:
    """The process that has `pid` now; None if there is no such process, or if it is a zombie.

    Raises OSError where the Box has no descriptor left to look at it.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError as exc:
        if is_exhausted(exc):
            raise
        return None
    fields = stat.rpartition(")")[2].split()
    if not fields or fields[_STATE] in _DEAD:
        return None
    return ProcessIdentity(pid=pid, started=int(fields[_STARTED]), boot_id=boot_id())


def is_alive(identity: ProcessIdentity) -> bool:
    """Whether this very process lives. Without a descriptor to look at it, its pid decides."""
    try:
        return identify(identity.pid) == identity
    except OSError:
        return Path(f"/proc/{identity.pid}").exists()


@cache
def boot_id() -> str:
    """The kernel's id of the current boot. Raises BoxError where /proc does not show it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (OSError, ValueError) as exc:
        raise BoxError(f"the kernel's boot id cannot be read: {exc}; mount /proc") from exc
