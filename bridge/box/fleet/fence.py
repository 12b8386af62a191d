"""Until when this host's fenced instances may live, in a file that their shims read.

A host that is cut off or frozen cannot stop what it runs, and others take its slots over when its
lease has ended. The shims of a service with ``fence = true`` end the instances before that,
whatever has become of the Box: they compare the file with the time since the boot, which both read
where a shell can. No clock of the kernel's stands in for that: in a container the file may be
another's work (lxcfs), and count from the container's start.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from bridge.settings import Timing

_log = logging.getLogger(__name__)

MARGIN: Final = 1.0  # seconds before the end of the lease: shims look twice a second
UPTIME: Final = Path("/proc/uptime")
_NEEDS: Final = MARGIN + 1.0  # seconds between heartbeat and lease: the file has whole ones


class Fence:
    """The file at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def extend(self, left: float) -> None:
        """Let fenced instances live while a lease of `left` seconds lasts, less the margin."""
        part = self.path.with_suffix(".part")
        try:
            until = _uptime() + left - MARGIN
            part.write_text(f"{int(until)}\n")  # whole seconds: all that a shell can compare
            part.replace(self.path)
        except (OSError, ValueError) as exc:
            _log.warning("%s cannot be renewed, fenced instances will end: %s", self.path, exc)


def unfit(timing: Timing) -> str:
    """Why no instance can be fenced on this host; empty if it can."""
    if timing.lease - timing.heartbeat < _NEEDS:
        return f"fence = true needs a lease that is {_NEEDS:g} s longer than the heartbeat"
    try:
        _uptime()
    except (OSError, ValueError) as exc:
        return f"fence = true needs {UPTIME}, by which shims tell the time: {exc}"
    return ""


def _uptime() -> float:
    """Seconds since the boot, as shims see it; raises OSError, or ValueError for what is none."""
    return float(UPTIME.read_text().partition(" ")[0])
