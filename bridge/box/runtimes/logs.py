"""The directories of instances: their logs, and how long they are kept after the end."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from bridge.private_files import opened, read_end
from bridge.settings import KeepEnded

_log = logging.getLogger(__name__)

STDOUT: Final = "stdout.log"
STDERR: Final = "stderr.log"
ENGINE: Final = "engine"
"""Names the engine that runs the container and holds its log until the container has ended."""

_CHUNK: Final = 1 << 20  # bytes that are copied at once
_TAIL: Final = 4096  # bytes at the end of a log that are searched for the last line


def instances_dir(data_dir: Path) -> Path:
    """The directory that holds one directory for each instance, named like the instance."""
    return data_dir / "instances"


def tail(file: Path) -> str:
    """The end of `file`; "" if it cannot be read."""
    try:
        return read_end(file, _TAIL).decode(errors="replace")
    except OSError:
        return ""


def last_line(file: Path) -> str:
    """The last line of `file` that is not blank; "" if there is no such line, or no such file."""
    lines = tail(file).split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def last_log_line(directory: Path) -> str:
    """The last line that an instance wrote: to stderr, or else to stdout."""
    for name in (STDERR, STDOUT):
        for file in (directory / name, older_file(directory / name, 1)):
            if line := last_line(file):
                return line
    return ""


def older_file(file: Path, number: int) -> Path:
    """The file with the lines that came before those of `file`; 1 has the newest of them."""
    return file.with_name(f"{file.name}.{number}")


def rotate(file: Path, size: int, files: int) -> tuple[int, int]:
    """Empty a log of more than 3/4 of `size`; returns the bytes that it had, and how many of these
    it has no more.

    Its end, at most `size` bytes, becomes the file ``.1``.

    The file itself stays, for the instance has it open, and appends to it. Lines that come between
    the copy and the end of this call are lost. Where the disk is full, all of them are: a log never
    takes more than its share. Raises OSError.
    """
    with opened(file, os.O_RDWR) as log:
        length = os.fstat(log).st_size
        if length <= size * 3 // 4:
            return length, 0
        copied = length
        if files > 1:
            copied = _keep_end(file, log, size, files)
        os.ftruncate(log, 0)
    return length, copied


def _keep_end(file: Path, log: int, size: int, files: int) -> int:
    """Copy the end of the open `log` to the file ``.1``, after the older files have moved on;
    returns where the copy ended.
    """
    end = os.fstat(log).st_size
    for number in range(files - 1, 1, -1):
        with contextlib.suppress(FileNotFoundError):
            older_file(file, number - 1).replace(older_file(file, number))
    part = file.with_name(f"{file.name}.part")
    try:
        older_file(file, 1).unlink(missing_ok=True)
        part.unlink(missing_ok=True)
        with opened(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as copy:
            end = _copy_end(log, copy, size)
        part.replace(older_file(file, 1))
    except OSError as exc:
        _log.warning("the older lines of %s are lost: %s", file, exc.strerror)
        part.unlink(missing_ok=True)
    return end


def _copy_end(log: int, to: int, size: int) -> int:
    place, copied = max(0, os.fstat(log).st_size - size), 0
    while (left := 2 * size - copied) > 0 and (
        chunk := os.pread(log, min(left, _CHUNK), place + copied)
    ):
        copied += os.write(to, chunk)
    return place + copied


def prune(data_dir: Path, living: Iterable[str], keep: KeepEnded) -> None:
    """Delete the directories of ended instances, except those that `keep` keeps of each service.

    A failure is logged and leaves the directories for the next call: a Box works on without it.
    """
    try:
        for directory in _surplus(instances_dir(data_dir), set(living), keep):
            shutil.rmtree(directory, ignore_errors=True)
    except OSError as exc:
        _log.warning("directories of ended instances cannot be deleted: %s", exc)


def _surplus(root: Path, living: set[str], keep: KeepEnded) -> list[Path]:
    by_service: dict[str, list[tuple[float, Path]]] = {}
    for directory in root.iterdir() if root.is_dir() else ():
        if directory.name not in living and directory.is_dir():
            service = directory.name.rpartition("-")[0]
            with contextlib.suppress(FileNotFoundError):  # another process deleted it
                entry = (directory.stat().st_mtime, directory)
                by_service.setdefault(service, []).append(entry)
    oldest = time.time() - keep.seconds
    return [
        item
        for entries in by_service.values()
        for number, (changed, item) in enumerate(sorted(entries, reverse=True))
        if number >= keep.count or changed < oldest
    ]
