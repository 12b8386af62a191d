"""Keeps the logs of instances within their bounds, so that no instance fills the disk, and notes
when their lines were written.

An instance writes to its logs itself, because it must outlive the Box. The Box looks at the sizes
twice a second, and ten times a second while a log grows fast.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Final

from bridge.box.runner.supervisor import Supervisor
from bridge.box.runtimes.log_pages import rotating
from bridge.box.runtimes.log_times import LogTimes
from bridge.box.runtimes.logs import STDERR, STDOUT, older_file, rotate
from bridge.log_limit import LimitedLog, cause_of
from bridge.settings import ServiceConfig

_CALM: Final = 0.5  # seconds between two looks
_FAST: Final = 0.1
_GROWTH: Final = 4  # a log grows fast that gains this part of its size between two looks


class LogRotation:
    """See the module. `root` has a directory for each instance."""

    def __init__(self, supervisor: Supervisor, root: Path) -> None:
        self._supervisor = supervisor
        self._root = root
        self._log = LimitedLog(logging.getLogger(__name__))
        self._sizes: dict[Path, int] = {}
        self._times: dict[Path, LogTimes] = {}

    async def run(self) -> None:
        """Rotate logs until cancelled."""
        while True:
            services = {
                instance.id: instance.publication.entry.service
                for instance in self._supervisor.instances()
            }
            fast = await asyncio.to_thread(self._rotate, services)
            await asyncio.sleep(_FAST if fast else _CALM)

    def _rotate(self, services: dict[str, ServiceConfig]) -> bool:
        """Rotate the logs that are too long; returns whether one grows fast."""
        sizes: dict[Path, int] = {}
        fast = False
        for instance_id, service in services.items():
            for name in (STDOUT, STDERR):
                file, limit = self._root / instance_id / name, service.log_bytes
                try:
                    size = self._rotate_file(file, limit, service.log_files)
                except FileNotFoundError:
                    continue
                except OSError as exc:
                    self._log.report(cause_of(exc), "%s cannot be rotated: %s", file, exc.strerror)
                    continue
                fast = fast or size - self._sizes.get(file, 0) > limit // _GROWTH
                sizes[file] = min(size, limit)
        self._sizes = sizes
        self._times = {file: times for file, times in self._times.items() if file in sizes}
        return fast

    def _rotate_file(self, file: Path, limit: int, count: int) -> int:
        """Note the growth of one log, and rotate it; returns its size before. Raises OSError."""
        size = file.stat().st_size
        if file not in self._times:
            self._times[file] = LogTimes.read(file, _older_sizes(file, count))
        times = self._times[file]
        if not size:
            return 0
        try:
            times.note(size, time.time_ns())
        finally:
            with rotating:
                size, dropped = rotate(file, limit, count)
                if dropped:
                    times.drop(dropped, _older_sizes(file, count))
        return size


def _older_sizes(file: Path, count: int) -> list[int]:
    """The sizes of the older files, the newest first."""
    sizes = []
    for number in range(1, count):
        try:
            sizes.append(older_file(file, number).stat().st_size)
        except OSError:
            break
    return sizes
