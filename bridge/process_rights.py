"""Rights of this process, and of the programs that it starts, as the Linux kernel keeps them.

The kernel keeps capabilities and ``no_new_privs`` for each thread, and a child inherits those of
the thread that forks it. So a thread that has given its rights up starts programs without them, at
no cost for the start: no wrapper program runs, and no code runs between fork and exec.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

# From linux/prctl.h and linux/capability.h.
_SET_DUMPABLE: Final = 4
_CAPBSET_READ: Final = 23
_CAPBSET_DROP: Final = 24
_SET_NO_NEW_PRIVS: Final = 38
_CAP_AMBIENT: Final = 47
_AMBIENT_RAISE: Final = 2
_AMBIENT_CLEAR_ALL: Final = 4
_VERSION_3: Final = 0x20080522
_CAP_CHOWN: Final = 0
_CAP_KILL: Final = 5
_CAP_SETGID: Final = 6
_CAP_SETUID: Final = 7
_CAP_SETPCAP: Final = 8

CHANGE_USER: Final = (_CAP_KILL, _CAP_SETGID, _CAP_SETUID)
"""The capabilities of a program that starts another one as another user, and must end it."""

_THREADS: Final = 8  # that start programs at the same time

T = TypeVar("T")


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def forbid_dumps() -> None:
    """Keep other processes of this user from reading this one's memory and environment.

    No process without CAP_SYS_PTRACE can attach to it, and it leaves no core dump. A program that
    this process starts is not affected. Raises OSError.
    """
    _prctl(_SET_DUMPABLE, 0)


def can_change_user() -> bool:
    """Whether this process may start a program as another user, and give files to that user."""
    permitted = _capabilities()[0]
    return all(permitted >> number & 1 for number in (*CHANGE_USER, _CAP_CHOWN))


class RestrictedThreads:
    """Threads without capabilities, except those in `keep`, and with ``no_new_privs``."""

    def __init__(self, keep: Collection[int] = ()) -> None:
        self._keep = keep
        self._local = threading.local()
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="restricted")

    def run(self, function: Callable[[], T]) -> T:
        """What `function` returns, called in one of the threads; blocks until then. Raises OSError
        if the thread cannot give up its rights: then `function` is not called.
        """
        return self._executor.submit(self._run, function).result()

    def _run(self, function: Callable[[], T]) -> T:
        if not getattr(self._local, "restricted", False):
            _restrict_thread(self._keep)
            self._local.restricted = True
        return function()


def _restrict_thread(keep: Collection[int]) -> None:
    """Give up the rights of the calling thread, for good. Raises OSError."""
    _prctl(_SET_NO_NEW_PRIVS, 1)
    permitted, effective = _capabilities()
    mask = sum(1 << number for number in keep) & permitted
    if effective >> _CAP_SETPCAP & 1:
        _limit_bounding_set(mask)
    _prctl(_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
    ambient = mask if os.geteuid() else 0  # root's programs get `mask` without that
    _set_capabilities(mask, ambient)
    for number in keep:
        if ambient >> number & 1:
            _prctl(_CAP_AMBIENT, _AMBIENT_RAISE, number)


def _limit_bounding_set(mask: int) -> None:
    number = 0
    while _libc().prctl(_CAPBSET_READ, number, 0, 0, 0) >= 0:
        if not mask >> number & 1:
            _prctl(_CAPBSET_DROP, number)
        number += 1


def _capabilities() -> tuple[int, int]:
    """The permitted and the effective capabilities of this thread, as bits."""
    header, sets = _Header(_VERSION_3, 0), (_Sets * 2)()
    _check(_libc().capget(ctypes.byref(header), sets))
    low, high = sets
    return low.permitted | high.permitted << 32, low.effective | high.effective << 32


def _set_capabilities(mask: int, inheritable: int) -> None:
    header, sets = _Header(_VERSION_3, 0), (_Sets * 2)()
    for half, item in enumerate(sets):
        item.effective = item.permitted = mask >> 32 * half & 0xFFFFFFFF
        item.inheritable = inheritable >> 32 * half & 0xFFFFFFFF
    _check(_libc().capset(ctypes.byref(header), sets))


def _prctl(option: int, *arguments: int) -> None:
    padded = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    _check(_libc().prctl(option, *padded))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"rights of a process cannot be given up: {os.strerror(number)}")
