"""The limit of an instance's address space, as what may have made it fail.

``memory_mib`` limits the address space, because no process without privileges can limit its memory.
Node.js, Go, Java and others reserve far more address space than they use, and then report that
they have no memory, or are killed by their own check.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Final

from bridge.box.runtimes.base import Exit
from bridge.box.runtimes.logs import STDERR, STDOUT, tail

_SIGNALS: Final = (
    *(signal.SIGABRT, signal.SIGSEGV, signal.SIGTRAP, signal.SIGILL, signal.SIGBUS, signal.SIGSYS),
)
_WORDS: Final = re.compile(r"memory|alloc|\bmmap|\bheap|\breserve|ENOMEM", re.IGNORECASE)


def explain(memory_mib: int | None, directory: Path, end: Exit | None) -> str:
    """Why an instance with this limit may have failed; "" if nothing points to the limit."""
    if memory_mib is None:
        return ""
    logs = tail(directory / STDERR) + tail(directory / STDOUT)
    if not (end is not None and end.signal in _SIGNALS) and not _WORDS.search(logs):
        return ""
    return (
        f"memory_mib = {memory_mib} limits the address space: Node.js, Go and Java reserve far "
        "more of it than they use. Raise it, leave it out, or use a container"
    )
