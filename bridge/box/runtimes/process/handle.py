"""The handle of one instance: its shim, its process group, and the signals to them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess

from bridge.box.runtimes.base import Exit, Spec
from bridge.box.runtimes.process import shim
from bridge.box.runtimes.process_identity import ProcessIdentity, is_alive


class Process:
    """The handle of one instance."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.popen: subprocess.Popen[bytes] | None = None  # None for an adopted instance, too
        self.identity: ProcessIdentity | None = None
        self.ended: asyncio.Future[Exit] | None = None
        self.killed = False
        self.command_started = False  # this Box has let it run
        self.grace_ends = 0.0  # the loop's time; until then its group may end by itself
        self.left_alone = False  # its workers have not got the stop signal
        self.cpus: set[int] = set()
        self.port = 0

    @property
    def stop_signal(self) -> signal.Signals:
        return signal.Signals[self.spec.stop_signal or "SIGTERM"]

    @property
    def instance_id(self) -> str:
        return self.spec.instance_id

    @property
    def pid(self) -> int:
        """The pid of the shim, which is also the group's; 0 before the start."""
        if self.identity is not None:
            return self.identity.pid
        return self.popen.pid if self.popen else 0

    @property
    def is_starting_or_running(self) -> bool:
        return self.ended is not None and not self.ended.done()

    @property
    def is_running(self) -> bool:
        return self.pid != 0 and self.is_starting_or_running

    def ask_to_end(self) -> None:
        """Send the stop signal: to the main process, or to the whole group."""
        if self.spec.stop_scope != "group" and shim.signal_command(self.pid, self.stop_signal):
            self.left_alone = True
        else:
            self.signal_group(self.stop_signal)

    def signal_group(self, number: int) -> None:
        """Signal the group. Without a living shim, another group may have got its number."""
        if self.identity is not None and is_alive(self.identity):
            self._kill_group(number)

    def signal_left_alone(self) -> None:
        """Send the stop signal to workers that have not got it: they keep the group's number."""
        if self.left_alone:
            self.left_alone = False
            self._kill_group(self.stop_signal)

    def reap(self) -> None:
        """Kill what the dead leader left in its group, if the leader is a child of this Box.

        Until the leader is reaped, no other group can get its number.
        """
        if self.popen is not None:
            self._kill_group(signal.SIGKILL)
            self.popen.wait()

    def discard(self) -> None:
        """End a shim that could not be set up; its command has not run."""
        if self.popen is not None:
            os.killpg(self.popen.pid, signal.SIGKILL)  # it is not reaped yet: its number is its own
            self.popen.wait()
        self.popen, self.identity, self.ended = None, None, None

    def _kill_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)
