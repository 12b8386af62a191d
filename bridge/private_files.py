"""Files and directories that only the Box's user may read: they hold secrets of services.

The journal and the logs have environment variables, requests and output in them. The modes do not
depend on the umask, which instances inherit unchanged.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

DIRECTORY_MODE: Final = 0o700
FILE_MODE: Final = 0o600
_OTHERS: Final = 0o077


def make_private_directory(directory: Path) -> None:
    """Make `directory`, with missing parents, or tighten it if it exists. Raises OSError."""
    if not directory.is_dir():
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
    tighten(directory)


def make_private(file: Path, *, empty: bool = False) -> None:
    """Make `file` if it is missing, and tighten it; with `empty`, delete its content."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if empty else 0)
    os.close(os.open(file, flags, FILE_MODE))
    tighten(file)


def tighten(path: Path) -> bool:
    """Take the rights of other users away; returns whether they had any. Raises OSError."""
    mode = path.stat().st_mode & 0o7777
    if not mode & _OTHERS:
        return False
    path.chmod(mode & ~_OTHERS)
    return True
