"""The data directory of a host: one Box locks it, and it keeps the host's id."""

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

_RETRY: Final = 0.1  # seconds between attempts to lock the directory
_LOCK_TIMEOUT: Final = 1.0  # seconds; a child that a killed Box was just forking holds its lock


@contextlib.contextmanager
def own_directory(directory: Path) -> Iterator[str]:
    """Lock `directory` for this process; gives the host id stored in it.

    Raises HostTaken if another Box has locked it, BoxError if it cannot be used.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / "lock").open("a+")
    except OSError as exc:
        raise BoxError(f"data_dir {directory} cannot be used: {exc.strerror}") from exc
    with lock:
        deadline = time.monotonic() + _LOCK_TIMEOUT
        while not _try_lock(lock):
            if time.monotonic() > deadline:
                raise HostTaken(
                    f"another Box uses {directory}: stop it, or choose another data_dir"
                )
            time.sleep(_RETRY)
        yield _host_id(directory / "host-id")


def place_of(directory: Path) -> str:
    """The place of a Box that has locked `directory`: the boot of the machine and the lock file."""
    file = (directory / "lock").stat()
    return f"{boot_id()}.{file.st_dev:x}.{file.st_ino:x}"


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _host_id(file: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        if host_id := file.read_text().strip():
            return host_id
    host_id = secrets.token_hex(8)
    part = file.with_suffix(".part")
    with part.open("w") as out:
        out.write(host_id + "\n")
        out.flush()
        os.fsync(out.fileno())
    part.replace(file)
    return host_id
