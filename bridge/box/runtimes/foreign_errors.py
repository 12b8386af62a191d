"""The error boundary of the runtimes: what the libraries below raise becomes an InstanceError.

A caller of a runtime handles `bridge.errors` alone. Whether a failure is worth a retry is decided
here, too: EngineSilent is transient, because the engine may answer the next call; every other
InstanceError is final for its instance, and the Box starts a replacement.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

import msgspec
import psutil

from bridge.errors import InstanceError

FOREIGN: Final = (
    OSError,  # of every errno: files, sockets, processes
    ValueError,  # malformed text (UnicodeError, JSON, numbers), a NUL byte, a limit out of range
    OverflowError,  # a number that does not fit
    RecursionError,  # JSON that is nested too deeply
    subprocess.SubprocessError,
    psutil.Error,
    msgspec.MsgspecError,
)
"""What the standard library, psutil and msgspec raise for a fault outside of this program."""

T = TypeVar("T")


@contextlib.contextmanager
def mapped_errors(action: str) -> Iterator[None]:
    """Raise InstanceError for a foreign exception of the block: ``<action>: <reason>``."""
    try:
        yield
    except FOREIGN as exc:
        raise InstanceError(f"{action}: {describe(exc)}") from exc


async def call_in_thread(action: str, function: Callable[..., T], *arguments: object) -> T:
    """What `function` returns, called in a thread, with its foreign exceptions mapped."""
    with mapped_errors(action):
        return await asyncio.to_thread(function, *arguments)


def describe(exc: BaseException) -> str:
    """The reason for people: the system's text without the errno; never empty."""
    strerror = getattr(exc, "strerror", None)
    filename = getattr(exc, "filename", None)
    if strerror:
        return f"{strerror}: {filename}" if filename else str(strerror)
    return str(exc) or type(exc).__name__
