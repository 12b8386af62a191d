"""Why a shell could not run a program: what it calls "not found" has several causes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

_START: Final = 256  # bytes of a file that are looked at; the kernel looks at as many
_BOM: Final = b"\xef\xbb\xbf"


def explain_program(program: str, cwd: str, path: str) -> str:
    """Why `program` cannot run in `cwd` with this PATH; "" if it seems that it can."""
    if "/" in program:
        file = Path(cwd) / program
        if not file.exists():
            return f"{file} does not exist"
    elif found := shutil.which(program, path=path):
        file = Path(cwd) / found
    else:
        return f"{program} is in none of the directories of its PATH: {path}"
    if file.is_dir():
        return f"{file} is a directory"
    if not os.access(file, os.X_OK):
        return f"{file} is not executable: chmod +x"
    try:
        with file.open("rb") as content:
            return _explain_start(file, content.read(_START))
    except OSError:
        return ""  # a program may be executable and not readable


def _explain_start(file: Path, start: bytes) -> str:
    if start.startswith(_BOM):
        return f"{file} starts with a byte order mark: save it without one"
    if not start.startswith(b"#!"):
        return ""
    line = start[2:].partition(b"\n")[0]
    if line.endswith(b"\r"):
        return f"{file} has the line ends of Windows (CR LF): save it with LF"
    words = line.split()
    interpreter = words[0].decode(errors="replace") if words else ""
    if not interpreter or Path(interpreter).exists():
        return ""
    return f"the interpreter of {file}, {interpreter}, does not exist"
