"""Until when this host's fenced instances may live, in a file that their shims read.

A host that is cut off or frozen cannot stop what it runs, and others take its slots over when its
lease has ended. The shims of a service with ``fence = true`` end the instances before that,
whatever has become of the Box: they compare the file with the time since the boot.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Final

_log = logging.getLogger(__name__)

MARGIN: Final = 1.0  # seconds before the end of the lease: shims look twice a second
FENCE_NEEDS: Final = MARGIN + 1.0  # seconds between heartbeat and lease: the file has whole ones


class Fence:
    """The file at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def extend(self, left: float) -> None:
        """Let fenced instances live while a lease of `left` seconds lasts, less the margin."""
        until = time.clock_gettime(time.CLOCK_BOOTTIME) + left - MARGIN
        part = self.path.with_suffix(".part")
        try:
            part.write_text(f"{int(until)}\n")  # whole seconds: all that a shell can compare
            part.replace(self.path)
        except OSError as exc:
            _log.warning("%s cannot be written, fenced instances will end: %s", self.path, exc)
