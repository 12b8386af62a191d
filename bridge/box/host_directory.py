"""The data directory of a host: one Box locks it, and it keeps the host's id."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from bridge.box.runtimes.logs import ENGINE, STDERR, STDOUT, instances_dir
from bridge.box.runtimes.process_identity import boot_id
from bridge.errors import BoxError, HostTaken
from bridge.private_files import make_private, make_private_directory, tighten

_log = logging.getLogger(__name__)

# An instance may give other users rights to files that it has made itself.
_PRIVATE: Final = (
    *("lock", "host-id", "fence", "journal.db*", "secrets", "instances/*"),
    *(f"instances/*/{name}" for name in (f"{STDOUT}*", f"{STDERR}*", "exit", ENGINE)),
)
OWNED: Final = (
    *("lock", "host-id", "host-id.part", "fence*", "journal.db*", "secrets", "instances"),
    *("nats", "loaded.json", "loaded.part", "metrics-token*"),
)
"""What a Box, `up` and the command line make in a data directory, as patterns."""

_RETRY: Final = 0.1  # seconds between attempts to lock the directory
_LOCK_TIMEOUT: Final = 1.0  # seconds; a child that a killed Box was just forking holds its lock


@contextlib.contextmanager
def own_directory(directory: Path) -> Iterator[str]:
    """Lock `directory` for this process; gives the host id stored in it.

    Raises HostTaken if another Box has locked it, BoxError if it cannot be used.
    """
    with _mapped_errors(directory):
        make_private_directory(directory)
        make_private(directory / "lock")
        lock = (directory / "lock").open("a+")
    with lock:
        deadline = time.monotonic() + _LOCK_TIMEOUT
        while not _try_lock(lock):
            if time.monotonic() > deadline:
                raise HostTaken(
                    f"another Box uses {directory}{_owner(lock)}: stop it, or choose another "
                    "data_dir"
                )
            time.sleep(_RETRY)
        with _mapped_errors(directory):
            _tighten_all(directory)
            _write_owner(directory / "lock")
            host_id = _host_id(directory / "host-id")
        yield host_id


@contextlib.contextmanager
def _mapped_errors(directory: Path) -> Iterator[None]:
    """Raise BoxError for an OSError of the block: `directory` cannot be used."""
    try:
        yield
    except OSError as exc:
        raise BoxError(f"data_dir {directory} cannot be used: {exc.strerror}") from exc


def _write_owner(file: Path) -> None:
    """Write this process into the lock file, for messages. A full disk has no room for that."""
    with contextlib.suppress(OSError):
        file.write_text(str(os.getpid()))


def metrics_token(directory: Path) -> str:
    """The token for scrapes of this host's metrics: of its file, or a new one. Raises BoxError."""
    file = directory / "metrics-token"
    try:
        make_private(file)
        if token := file.read_text().strip():
            return token
        token = secrets.token_urlsafe(32)
        file.write_text(token + "\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise BoxError(f"{file} cannot be used: {exc}") from exc
    return token


def is_locked(directory: Path) -> bool:
    """Whether a Box uses `directory` now."""
    try:
        lock = (directory / "lock").open("r+")  # it must not make one
    except OSError:
        return False
    with lock:
        return not _try_lock(lock)


def place_of(directory: Path) -> str:
    """The place of a Box that has locked `directory`: the boot of the machine and the lock file."""
    file = (directory / "lock").stat()
    return f"{boot_id()}.{file.st_dev:x}.{file.st_ino:x}"


def _owner(lock: IO[str]) -> str:
    """The process that holds `lock`, if it has written its id yet."""
    lock.seek(0)
    pid = lock.read(20)
    return f" (pid {pid})" if pid.isdecimal() else ""


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _tighten_all(directory: Path) -> None:
    """Take other users' rights away from what an earlier version has left; log that once."""
    instances = instances_dir(directory)
    changed = 0
    for pattern in _PRIVATE:
        for path in directory.glob(pattern):
            with contextlib.suppress(OSError):  # another user's, or just deleted
                changed += not path.is_symlink() and tighten(path)
    if instances.is_dir():
        changed += tighten(instances)
    if changed:
        _log.warning(
            "other users could read %d files and directories in %s: they no longer can",
            changed,
            directory,
        )


def _host_id(file: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        if host_id := file.read_text().strip():
            return host_id
    host_id = secrets.token_hex(8)
    part = file.with_suffix(".part")
    make_private(part, empty=True)
    with part.open("w") as out:
        out.write(host_id + "\n")
        out.flush()
        os.fsync(out.fileno())
    part.replace(file)
    return host_id
