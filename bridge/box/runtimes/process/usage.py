"""CPU and memory that groups of processes use.

The kernel keeps a CPU clock for each process. Where that clock stands still, the process did
nothing and its memory is unchanged, so nothing is read. Otherwise one small file is read. psutil
reads six files for the same two numbers: for 500 instances, once a second, 1/40 of a core.
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
    """One process: seconds of CPU since its start, bytes of memory, start time in clock ticks."""

    cpu: float
    memory: int
    started: int


class UsageMeter:
    """Measures groups of processes; each measurement covers the time since the last one."""

    def __init__(self) -> None:
        self._samples: dict[int, ProcessSample] = {}
        self._at = 0.0

    def measure(self, groups: Container[int], now: float) -> tuple[Counter[int], Counter[int]]:
        """Tenths of a percent of one core, and bytes of memory, of each of the `groups`.

        Leaders do not count. `now` is in seconds. The CPU of a process counts from the second
        measurement on. Raises OSError if /proc cannot be read.
        """
        cpu: Counter[int] = Counter()
        memory: Counter[int] = Counter()
        samples: dict[int, ProcessSample] = {}
        span = now - self._at
        for pid in pids():
            group = group_of(pid)
            if group not in groups or pid == group:
                continue
            before = self._samples.get(pid)
            sample = read_sample(pid, before)
            if sample is None:
                continue
            samples[pid] = sample
            memory[group] += sample.memory
            if before is not None and before.started == sample.started and span > 0:
                cpu[group] += round((sample.cpu - before.cpu) / span * 1000)
        self._samples, self._at = samples, now
        return cpu, memory


def pids() -> list[int]:
    """The pids of all processes of this host."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 (thousands)


def read_sample(pid: int, before: ProcessSample | None = None) -> ProcessSample | None:
    """What `pid` uses; None if there is no such process.

    `before`, the last sample of this process, is returned if the process's clock has not moved.
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
    """The number of the CPU clock of `pid`.

    Computed as in clock_getcpuclockid(3) and linux/posix-timers.h (CPUCLOCK_SCHED is 2).
    """
    return ~pid << 3 | 2
