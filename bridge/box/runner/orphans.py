"""Reaping orphans: processes of instances whose parent has ended, and that the kernel gave to us.

The kernel makes the first process of a container their parent, or a subreaper. The command line
forks as the first process, and its parent reaps (bridge/cli/init_process.py). A program that runs a
Box as a library cannot do that, so the Box reaps there.

No exit code of another child is taken: children of this process are waited for by those that
started them. An orphan is in a session that is not this process's own, as the shims make them. It
is no shim of an instance, and nothing has reaped it for several seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Final

import psutil

from bridge.box.runtimes.process.process_groups import children

_CHECK: Final = 2.5  # seconds between looks at the children
_LOOKS: Final = 2  # further looks at which a child must still be there
_GET_CHILD_SUBREAPER: Final = 37  # from linux/prctl.h


class Orphans:
    """Reaps orphans while this process is their parent. `shims` are processes with a waiter."""

    def __init__(self, shims: Callable[[], AbstractSet[int]]) -> None:
        self._shims = shims
        self._seen: dict[int, int] = {}  # the looks at each that has ended

    async def run(self) -> None:
        """Reap until cancelled."""
        while True:
            if is_reaper():
                self.look()
            await asyncio.sleep(_CHECK)

    def look(self) -> None:
        """Reap the orphans that have been seen often enough."""
        shims = self._shims()
        ended = {pid for pid in children(os.getpid()) if pid not in shims and _is_orphan(pid)}
        self._seen = {pid: self._seen.get(pid, -1) + 1 for pid in ended}
        for pid in [pid for pid, looks in self._seen.items() if looks >= _LOOKS]:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def is_reaper() -> bool:
    """Whether the kernel makes this process the parent of orphans."""
    if os.getpid() == 1:
        return True
    flag = ctypes.c_int(0)
    ctypes.CDLL(None).prctl(_GET_CHILD_SUBREAPER, ctypes.byref(flag), 0, 0, 0)
    return bool(flag.value)


def _is_orphan(pid: int) -> bool:
    """Whether a child has ended, in a session that is not this process's own."""
    with contextlib.suppress(psutil.Error, OSError):
        ended = psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        return ended and os.getsid(pid) != os.getsid(0)
    return False
