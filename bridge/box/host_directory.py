"""The data directory of a host: locked by one Box, and the home of the host's id."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from bridge.box.runtimes.process_identity import boot_id
from bridge.errors import BoxError, HostTaken

_CHECK: Final = 0.1  # seconds between tries to lock the directory
_LOCK_PATIENCE: Final = 1.0  # seconds; what a killed Box was just forking holds its lock a moment


@contextlib.contextmanager
def own_directory(directory: Path) -> Iterator[str]:
    """Hold `directory` for this process alone; gives the host id that it keeps.

    Raises HostTaken if another Box holds it, BoxError if it cannot be used.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / "lock").open("a+")
    except OSError as exc:
        raise BoxError(f"data_dir {directory} cannot be used: {exc.strerror}") from exc
    with lock:
        deadline = time.monotonic() + _LOCK_PATIENCE
        while not _locked(lock):
            if time.monotonic() > deadline:
                raise HostTaken(
                    f"another Box works in {directory}: stop it, or choose another data_dir"
                )
            time.sleep(_CHECK)
        yield _host_id(directory / "host-id")


def place_of(directory: Path) -> str:
    """Where a Box works that holds `directory`: this boot of the machine and this very file."""
    file = (directory / "lock").stat()
    return f"{boot_id()}.{file.st_dev:x}.{file.st_ino:x}"


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _host_id(file: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        if kept := file.read_text().strip():
            return kept
    fresh = secrets.token_hex(8)
    part = file.with_suffix(".part")
    with part.open("w") as out:
        out.write(fresh + "\n")
        out.flush()
        os.fsync(out.fileno())
    part.replace(file)
    return fresh
