"""The file that holds until when this host's fenced instances may live; their shims read it.

A host that is cut off or frozen cannot stop its instances, and other hosts take its slots over when
its lease has ended. The shims of a service with ``fence = true`` end the instances before that,
with or without a Box. They compare the file with the time since the boot. Box and shim both read
that time from /proc/uptime, and not from a clock of the kernel: in a container /proc/uptime may
come from lxcfs, which counts from the start of the container.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from bridge.settings import Timing

_log = logging.getLogger(__name__)

MARGIN: Final = 1.0  # seconds before the end of the lease: shims check twice a second
UPTIME: Final = Path("/proc/uptime")
_NEEDS: Final = MARGIN + 1.0  # seconds from heartbeat to lease: the file has whole seconds


class Fence:
    """The file at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def extend(self, left: float) -> None:
        """Let fenced instances live until the margin before the end of `left` seconds."""
        part = self.path.with_suffix(".part")
        try:
            until = _uptime() + left - MARGIN
            part.write_text(f"{int(until)}\n")  # a shell compares whole numbers only
            part.replace(self.path)
        except (OSError, ValueError) as exc:
            _log.warning("%s cannot be written, so fenced instances will end: %s", self.path, exc)


def blocker(timing: Timing) -> str | None:
    """Why no instance can be fenced on this host."""
    if timing.lease - timing.heartbeat < _NEEDS:
        return f"fence = true needs a lease that is {_NEEDS:g} s longer than the heartbeat"
    try:
        _uptime()
    except (OSError, ValueError) as exc:
        return f"fence = true needs {UPTIME}, which shims read: {exc}"
    return None


def _uptime() -> float:
    """Seconds since the boot, as shims read it. Raises OSError or ValueError."""
    return float(UPTIME.read_text().partition(" ")[0])
