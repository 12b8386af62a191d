"""Files and directories that only the Box's user may read: they hold secrets of services.

The journal and the logs have environment variables, requests and output in them. The modes do not
depend on the umask, which instances inherit unchanged.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

DIRECTORY_MODE: Final = 0o700
FILE_MODE: Final = 0o600
_OTHERS: Final = 0o077


def make_private_directory(directory: Path) -> None:
    """Make `directory`, with missing parents, or tighten it if it exists. Raises OSError.

    A directory with the sticky bit, like /tmp, is meant for all users and stays as it is.
    """
    directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    tighten(directory)


def make_private(file: Path, *, empty: bool = False) -> None:
    """Make `file` if it is missing, and tighten it; with `empty`, delete its content."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if empty else 0)
    os.close(os.open(file, flags, FILE_MODE))
    tighten(file)


def tighten(path: Path) -> bool:
    """Take the rights of other users away; returns whether they had any. Raises OSError.

    What belongs to another user stays as it is.
    """
    mode = stat.S_IMODE(path.stat().st_mode)
    if not mode & _OTHERS or mode & stat.S_ISVTX:
        return False
    try:
        path.chmod(mode & ~_OTHERS)
    except PermissionError:
        return False
    return True
