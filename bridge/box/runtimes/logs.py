"""The directories of instances: their logs, and how long they are kept after the end."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_log = logging.getLogger(__name__)

STDOUT: Final = "stdout.log"
STDERR: Final = "stderr.log"
ENGINE: Final = "engine"
"""Names the engine that runs the container and holds its log until the container has ended."""

KEEP_DIRECTORIES: Final = 10
"""How many directories of ended instances are kept, of each service."""

_TAIL: Final = 4096  # bytes at the end of a log that are searched for the last line


def instances_dir(data_dir: Path) -> Path:
    """The directory that holds one directory for each instance, named like the instance."""
    return data_dir / "instances"


def tail(file: Path) -> str:
    """The end of `file`; "" if it cannot be read."""
    try:
        with file.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL))
            return log.read().decode(errors="replace")
    except OSError:
        return ""


def last_line(file: Path) -> str:
    """The last line of `file` that is not blank; "" if there is no such line, or no such file."""
    lines = tail(file).split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def last_log_line(directory: Path) -> str:
    """The last line that an instance wrote: to stderr, or else to stdout."""
    return last_line(directory / STDERR) or last_line(directory / STDOUT)


def prune(data_dir: Path, living: Iterable[str]) -> None:
    """Delete the directories of ended instances, except the newest ones of each service.

    A failure is logged and leaves the directories for the next call: a Box works on without it.
    """
    try:
        for directory in _surplus(instances_dir(data_dir), set(living)):
            shutil.rmtree(directory, ignore_errors=True)
    except OSError as exc:
        _log.warning("directories of ended instances cannot be deleted: %s", exc)


def _surplus(root: Path, living: set[str]) -> list[Path]:
    by_service: dict[str, list[tuple[float, Path]]] = {}
    for directory in root.iterdir() if root.is_dir() else ():
        if directory.name not in living and directory.is_dir():
            service = directory.name.rpartition("-")[0]
            with contextlib.suppress(FileNotFoundError):  # another process deleted it
                entry = (directory.stat().st_mtime, directory)
                by_service.setdefault(service, []).append(entry)
    return [
        item for entries in by_service.values() for _, item in sorted(entries)[:-KEEP_DIRECTORIES]
    ]
