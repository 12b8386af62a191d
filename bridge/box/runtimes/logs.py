"""Where instances leave what they say, and for how long it is kept."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

STDOUT: Final = "stdout.log"
STDERR: Final = "stderr.log"
ENGINE: Final = "engine"  # says which program made a container, and has its log until it has ended
KEPT: Final = 10  # directories of ended instances, of each service

_TAIL: Final = 4096  # bytes of a log in which its last line is looked for


def instances_dir(data_dir: Path) -> Path:
    """Beneath it each instance has a directory, named like the instance."""
    return data_dir / "instances"


def last_line(file: Path) -> str:
    """The last line of `file` that is not blank; empty if there is none."""
    try:
        with file.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL))
            lines = log.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def prune(data_dir: Path, living: Iterable[str]) -> None:
    """Delete the directories of ended instances but for the newest of each service."""
    alive = set(living)
    by_service: dict[str, list[tuple[float, Path]]] = {}
    root = instances_dir(data_dir)
    for directory in root.iterdir() if root.is_dir() else ():
        if directory.name not in alive and directory.is_dir():
            service = directory.name.rpartition("-")[0]
            with contextlib.suppress(FileNotFoundError):  # somebody else cleans up, too
                entry = (directory.stat().st_mtime, directory)
                by_service.setdefault(service, []).append(entry)
    for entries in by_service.values():
        for _, directory in sorted(entries)[:-KEPT]:
            shutil.rmtree(directory, ignore_errors=True)
