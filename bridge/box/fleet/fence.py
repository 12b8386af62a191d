"""The file that holds until when this host's fenced instances may live; their shims read it.

A host that is cut off or frozen cannot stop its instances, and other hosts take its slots over when
its lease has ended. The shims of a service with ``fence = true`` end the instances before that,
with or without a Box. They compare the file with the time since the boot. Box and shim both read
that time from /proc/uptime, and not from a clock of the kernel: in a container /proc/uptime may
come from lxcfs, which counts from the start of the container.

The file has one size for ever, and is overwritten in place: a full disk, or a lack of descriptors,
does not keep the Box from extending the time. It has the time twice, and a reader that finds two
different times has met a write: it reads again.
"""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bridge.descriptors import is_exhausted
from bridge.log_limit import LimitedLog, cause_of
from bridge.private_files import make_private
from bridge.settings import Timing

_log = logging.getLogger(__name__)

MARGIN: Final = 1.0  # seconds before the end of the lease: shims check twice a second
UPTIME: Final = Path("/proc/uptime")
_NEEDS: Final = MARGIN + 1.0  # seconds from heartbeat to lease: the file has whole seconds


_LINE: Final = "{:012d}\n"


class Fence:
    """The file at `path`. It stays open from the first `extend` on."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._file: int | None = None
        self._close: Callable[[], object] = lambda: None
        self._boot_to_uptime = 0.0  # seconds between the kernel's clock and the shims' clock
        self._log = LimitedLog(_log)

    def extend(self, left: float) -> None:
        """Let fenced instances live until the margin before the end of `left` seconds."""
        try:
            until = int(self._uptime() + left - MARGIN)  # a shell compares whole numbers only
            os.pwrite(self._open(), (_LINE.format(until) * 2).encode(), 0)
        except (OSError, ValueError) as exc:
            text = "%s cannot be written, so fenced instances will end: %s"
            self._log.report(cause_of(exc), text, self.path, exc)

    def _open(self) -> int:
        """The descriptor of the file; made again if the file was deleted."""
        if self._file is not None and not _is_at(self._file, self.path):
            self._close()
            self._file = None
        if self._file is None:
            make_private(self.path)
            self._file = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
            self._close = weakref.finalize(self, os.close, self._file)
        return self._file

    def _uptime(self) -> float:
        boot = time.clock_gettime(time.CLOCK_BOOTTIME)
        try:
            self._boot_to_uptime = _seconds(UPTIME.read_text()) - boot
        except OSError as exc:
            if not is_exhausted(exc):
                raise
        return boot + self._boot_to_uptime


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def blocker(timing: Timing) -> str | None:
    """Why no instance can be fenced on this host."""
    if timing.lease - timing.heartbeat < _NEEDS:
        return f"fence = true needs a lease that is {_NEEDS:g} s longer than the heartbeat"
    try:
        _seconds(UPTIME.read_text())
    except (OSError, ValueError) as exc:
        return f"fence = true needs {UPTIME}, which shims read: {exc}"
    return None


def _seconds(text: str) -> float:
    """Seconds since the boot, as shims read them. Raises ValueError."""
    return float(text.partition(" ")[0])
