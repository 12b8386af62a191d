"""The machine of a run, and whether it was quiet enough for the figures to be trusted."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Final

import psutil
from msgspec import Struct

from bridge.version import VERSION

_CALIBRATION: Final = 200_000  # turns of a loop that takes some ten milliseconds
_TRIES: Final = 3  # the quickest counts: the others may have been interrupted

_WOBBLE: Final = 1.25  # between the slowest and the quickest calibration
_STEAL: Final = 2.0  # percent of the time that the hypervisor gave to others
_BUSY: Final = 25.0  # percent of the processors that others may use

_PACKAGES: Final = ("nats-py", "msgspec", "uvloop", "aiohttp")


class Machine(Struct, frozen=True, kw_only=True):
    """The machine, system and versions of a run: without them no figure means anything."""

    processor: str
    cpus: int
    memory_gib: float
    system: str
    python: str
    loop: str
    versions: dict[str, str]


class Noise(Struct, frozen=True, kw_only=True):
    """Other work on the machine during a run. `wobble` is the ratio of the slowest to the quickest
    calibration; other programs used `others` percent of all processors.
    """

    wobble: float
    load: float
    cpus: int
    steal: float
    others: float

    @property
    def warnings(self) -> list[str]:
        """Why the figures cannot be trusted; empty if they can."""
        warnings = []
        if self.wobble > _WOBBLE:
            warnings.append(f"the same loop took {self.wobble:.2f} times as long in some rounds")
        if self.load > self.cpus:
            warnings.append(
                f"the load was {self.load:.1f} on {self.cpus} processors before the start"
            )
        if self.steal > _STEAL:
            warnings.append(f"the hypervisor kept {self.steal:.0f} % of the time for others")
        if self.others > _BUSY:
            warnings.append(f"other programs used {self.others:.0f} % of the processors")
        return warnings


def describe_machine() -> Machine:
    """This machine and this process; call it in the loop that measures."""
    return Machine(
        processor=_processor(),
        cpus=os.cpu_count() or 1,
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        system=f"{platform.system()} {platform.release()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        loop=type(asyncio.get_running_loop()).__module__.partition(".")[0],
        versions={"box-bridge": VERSION} | {name: _version(name) for name in _PACKAGES},
    )


class NoiseMeter:
    """Measures how quiet the machine is, from its creation to `noise`."""

    def __init__(self) -> None:
        self._load = os.getloadavg()[0]
        self._before = psutil.cpu_times()
        self._own = _own_time()
        self._loops: list[float] = []

    def calibrate(self) -> None:
        """Time a loop that always does the same work; call it between the rounds."""
        self._loops.append(min(_loop_time() for _ in range(_TRIES)))

    def noise(self) -> Noise:
        """The noise since this meter was created."""
        now = psutil.cpu_times()
        spent = {name: getattr(now, name) - getattr(self._before, name) for name in now._fields}
        total = sum(value for name, value in spent.items() if not name.startswith("guest"))
        steal = spent.get("steal", 0.0)
        unused = spent.get("idle", 0.0) + spent.get("iowait", 0.0) + steal
        others = max(total - unused - (_own_time() - self._own), 0.0)
        share = 100 / max(total, 0.01)
        return Noise(
            wobble=max(self._loops, default=1.0) / min(self._loops, default=1.0),
            load=self._load,
            cpus=os.cpu_count() or 1,
            steal=steal * share,
            others=others * share,
        )


def _own_time() -> float:
    """Processor seconds of this process and its children."""
    used = sum(os.times()[:4])
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            used += sum(child.cpu_times()[:4])
    return used


def _loop_time() -> float:
    gc.collect()
    start, total = time.perf_counter(), 0
    for number in range(_CALIBRATION):
        total += number & 7
    return time.perf_counter() - start


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine() or sys.platform)
