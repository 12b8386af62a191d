"""Who belongs to an instance: its process group, and what has left that group."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

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


def members(leader: int) -> Iterator[int]:
    """The leader, its group, its descendants in groups of their own: the likeliest first, so that
    who finds one among the first need not look at all processes of the host.
    """
    own = children(leader)
    yield leader
    yield from own
    for pid in psutil.pids():
        if pid != leader and pid not in own and group_of(pid) == leader:
            yield pid
    with contextlib.suppress(psutil.Error):
        yield from (child.pid for child in psutil.Process(leader).children(recursive=True))


def children(pid: int) -> list[int]:
    """The direct children of a process; asks the kernel, which lists them, not all processes."""
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:  # no such process, or a kernel built without CONFIG_PROC_CHILDREN
        with contextlib.suppress(psutil.Error):
            return [child.pid for child in psutil.Process(pid).children()]
        return []
    except OSError:
        return []
    return [int(child) for child in listed]
