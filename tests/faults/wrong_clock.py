"""A Box whose wall clock is set back an hour once there is a file: it takes the file away.

python -m tests.faults.wrong_clock CONFIG; the file is CONFIG with the suffix ``.clock``
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path


def set_back_on(order: Path) -> None:
    """From the first look at the clock on that finds the order."""
    true, off = time.time, 0.0

    def wrong() -> float:
        nonlocal off
        if order.exists():
            order.unlink()
            off = -3600.0
        return true() + off

    time.time = wrong


def main(config: str) -> None:
    file = Path(config)
    set_back_on(file.with_suffix(".clock"))
    # After that: what takes a clock for its default takes the wrong one.
    from bridge.box.daemon import Box
    from bridge.config import load

    asyncio.run(Box(load(file, environ=dict(os.environ))).run())


if __name__ == "__main__":
    main(*sys.argv[1:])
