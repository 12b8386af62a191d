"""Who belongs to an instance: its process group, and what has left that group."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import psutil


def group_of(pid: int) -> int:
    """The process group of `pid`, -1 if there is no such process."""
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return -1


def has_others(leader: int) -> bool:
    """Whether somebody but the leader still lives in its group."""
    for pid in psutil.pids():
        if pid != leader and group_of(pid) == leader:
            with contextlib.suppress(psutil.Error):
                if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                    return True
    return False


def members(leader: int) -> Iterator[psutil.Process]:
    """The leader, its group, its descendants in groups of their own: the likeliest first."""
    with contextlib.suppress(psutil.Error):
        yield psutil.Process(leader)
    for pid in psutil.pids():
        if pid != leader and group_of(pid) == leader:
            with contextlib.suppress(psutil.Error):
                yield psutil.Process(pid)
    with contextlib.suppress(psutil.Error):
        yield from psutil.Process(leader).children(recursive=True)
