"""Files and directories that only the Box's user may read: they hold secrets of services.

The journal and the logs have environment variables, requests and output in them. The modes do not
depend on the umask, which instances inherit unchanged.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

DIRECTORY_MODE: Final = 0o700
FILE_MODE: Final = 0o600
_OTHERS: Final = 0o077
_PASS: Final = 0o011


def make_private_directory(directory: Path) -> None:
    """Make `directory`, with missing parents, or tighten it if it exists. Raises OSError.

    A directory with the sticky bit, like /tmp, is meant for all users and stays as it is.
    """
    directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    tighten(directory)


def let_pass(directory: Path) -> None:
    """Let other users go through `directory` to what is theirs in it, without a look at the rest.
    Raises OSError.
    """
    directory.chmod(stat.S_IMODE(directory.stat().st_mode) | _PASS)


def make_private(file: Path, *, empty: bool = False) -> None:
    """Make `file` if it is missing, and tighten it; with `empty`, delete its content."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if empty else 0)
    os.close(os.open(file, flags, FILE_MODE))
    tighten(file)


def open_regular(file: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of `file`, for a directory in which an instance may write.

    An instance can put a link, a FIFO or a device there. Such a file is not followed, waited for or
    read. Neither is one with a second name, which may be a file that matters elsewhere. Raises
    OSError.
    """
    safe = flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    descriptor = os.open(file, safe, FILE_MODE)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file with one name", str(file))
    return descriptor


@contextlib.contextmanager
def opened(file: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """The descriptor of `open_regular`, closed after the block. Raises OSError."""
    descriptor = open_regular(file, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_end(file: Path, size: int) -> bytes:
    """The last `size` bytes of a regular file. Raises OSError."""
    with opened(file) as descriptor:
        length = os.fstat(descriptor).st_size
        return os.pread(descriptor, size, max(0, length - size))


def tighten(path: Path) -> bool:
    """Take the rights of other users away; returns whether they had any. Raises OSError.

    What belongs to another user stays as it is, and so does a directory of `let_pass`.
    """
    status = path.stat()
    mode = stat.S_IMODE(status.st_mode)
    if not mode & _OTHERS or mode & stat.S_ISVTX:
        return False
    if stat.S_ISDIR(status.st_mode) and mode & _OTHERS == _PASS:
        return False
    try:
        path.chmod(mode & ~_OTHERS)
    except PermissionError:
        return False
    return True
