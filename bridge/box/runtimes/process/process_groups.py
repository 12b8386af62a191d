"""Which processes belong to an instance: its process group, and descendants that left the group."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import psutil


def group_of(pid: int) -> int:
    """The process group of `pid`; -1 if there is no such process, or none that may be seen."""
    try:
        return os.getpgid(pid)
    except OSError:
        return -1


def has_others(leader: int) -> bool:
    """Whether a process other than the leader still lives in the leader's group."""
    for pid in psutil.pids():
        if pid != leader and group_of(pid) == leader:
            with contextlib.suppress(psutil.Error):
                if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                    return True
    return False


def members(leader: int) -> Iterator[int]:
    """The leader, its group, and its descendants in groups of their own.

    The likeliest come first: a caller that finds its process there need not look at all of them.
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
    """The direct children of a process. The kernel lists them, without a look at all processes."""
    try:
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:  # no such process, or a kernel built without CONFIG_PROC_CHILDREN
        with contextlib.suppress(psutil.Error):
            return [child.pid for child in psutil.Process(pid).children()]
        return []
    except OSError:
        return []
    return [int(word) for word in words]
