"""What groups of processes use: CPU and memory.

The kernel has a clock of the CPU of each process. Where it stands still the process did nothing,
its memory is as it was, and there is nothing to be read; else one small file is. psutil reads six
files for the same two numbers, which for 500 instances, once a second, is a fortieth of a core.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Container
from typing import Final

from msgspec import Struct

from bridge.box.runtimes.process.process_groups import group_of

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")  # bytes
_STAT: Final = 1024  # bytes; a line of /proc/<pid>/stat is shorter

# Fields of /proc/<pid>/stat after the command's closing bracket: proc(5), less the first three.
_STARTED: Final = 19
_RESIDENT: Final = 21


class ProcessSample(Struct, frozen=True, gc=False):
    """One process: seconds of CPU so far, bytes of memory, and when it started (clock ticks)."""

    cpu: float
    memory: int
    started: int


class UsageMeter:
    """Measures groups, each time since the last."""

    def __init__(self) -> None:
        self._seen: dict[int, ProcessSample] = {}
        self._at = 0.0

    def measure(self, groups: Container[int], now: float) -> tuple[Counter[int], Counter[int]]:
        """Percent of one core, in tenths, and bytes of memory of each of the `groups`, but for
        their leaders; `now` in seconds. The CPU of a process counts from the second look on.
        """
        cpu: Counter[int] = Counter()
        memory: Counter[int] = Counter()
        seen: dict[int, ProcessSample] = {}
        span = now - self._at
        for pid in pids():
            group = group_of(pid)
            if group not in groups or pid == group:
                continue
            before = self._seen.get(pid)
            load = read_load(pid, before)
            if load is None:
                continue
            seen[pid] = load
            memory[group] += load.memory
            if before is not None and before.started == load.started and span > 0:
                cpu[group] += round((load.cpu - before.cpu) / span * 1000)
        self._seen, self._at = seen, now
        return cpu, memory


def pids() -> list[int]:
    """All processes of this host."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 (thousands)


def read_load(pid: int, before: ProcessSample | None = None) -> ProcessSample | None:
    """What `pid` uses; None if there is no such process. `before` is what it used when it was
    looked at last: the same if its clock has not moved.
    """
    with contextlib.suppress(OSError):
        cpu = time.clock_gettime(_cpu_clock(pid))
        if before is not None and before.cpu == cpu:
            return before
        file = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fields = os.read(file, _STAT).rpartition(b")")[2].split()
        finally:
            os.close(file)
        return ProcessSample(cpu, int(fields[_RESIDENT]) * _PAGE, int(fields[_STARTED]))
    return None


def _cpu_clock(pid: int) -> int:
    """The number of the clock of the CPU that a process has used: as clock_getcpuclockid(3) and
    linux/posix-timers.h make it (CPUCLOCK_SCHED is 2).
    """
    return ~pid << 3 | 2
