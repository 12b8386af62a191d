"""The first process of a container reaps orphans, because the kernel makes it their parent.

A Box cannot reap them itself without the risk of taking exit codes from its own children. So where
the command line is process 1, it forks: the child does the work, the parent reaps. The parent
passes signals on, and ends with the child's exit code.
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Final

_FROM_KERNEL: Final = 0x80  # SI_KERNEL: a signal of the terminal, which the child gets, too
_FORWARDED: Final = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2),
)


def become_child_of_init() -> int | None:
    """None in the process that goes on to do the work; in its parent, once that has ended, its exit
    code. Does nothing unless this process has the pid 1.
    """
    if os.getpid() != 1:
        return None
    signals = (*_FORWARDED, signal.SIGCHLD)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return None
    while True:
        if (code := _reap(child)) is not None:
            return code
        info = signal.sigwaitinfo(signals)
        if info.si_signo != signal.SIGCHLD and info.si_code != _FROM_KERNEL:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, info.si_signo)


def _reap(child: int) -> int | None:
    """Reap everything that has ended; the exit code of `child` once it has, as shells give it."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return 1
        if pid == 0:
            return None
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
