"""One instance as a container: what the Box knows of it, and how it ended."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bridge.box.runtimes.base import Exit, Spec
from bridge.box.runtimes.oci import container_kernel
from bridge.box.runtimes.oci.parsing import ContainerState
from bridge.box.runtimes.process_identity import ProcessIdentity, boot_id, identify, is_alive
from bridge.box.state.runtime_limits import guest_port

_SIGNALLED: Final = 128  # an exit code of 128 + n means signal n, as in shells


class Container:
    """The handle of one instance.

    `exists` says that the engine has a container of this name, `may_have_run` that its command may
    have started. `suspected` says that it may have ended, so that the engine must be asked. The
    engine has until `doubt_ends`, in the loop's time, to confirm an end that the kernel reported.
    `identity` is its main process, where the kernel of this host knows it.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.exists = False
        self.may_have_run = False
        self.ended: asyncio.Future[Exit] | None = None
        self.suspected = False
        self.concluding = False
        self.doubt_ends = float("inf")
        self.identity: ProcessIdentity | None = None
        self._started = False
        self._port = 0
        self._memory: Path | None = None
        self._out_of_memory = False
        self._pidfd = -1

    @property
    def instance_id(self) -> str:
        return self.spec.instance_id

    @property
    def name(self) -> str:
        """The container's name in the engine."""
        return self.spec.instance_id

    @property
    def port(self) -> int:
        return self._port

    @property
    def guest(self) -> int:
        """The port inside at which it serves."""
        return guest_port(self.spec.port_map)

    @property
    def pid(self) -> int:
        """Its main process; 0 where the kernel of this host does not know it."""
        return self.identity.pid if self.identity else 0

    @property
    def is_active(self) -> bool:
        """Whether it is starting or running, as far as the Box knows."""
        return self.ended is not None and not self.ended.done()

    @property
    def is_started(self) -> bool:
        """Whether the engine has started it, and its end is not known."""
        return self._started and self.is_active

    def prepare_start(self) -> None:
        """Reset what the last run left; the start comes next."""
        self.ended = asyncio.get_running_loop().create_future()
        self.suspected, self.doubt_ends = False, float("inf")
        self.identity, self._port, self.may_have_run, self._started = None, 0, False, False

    def mark_started(self) -> None:
        """The engine reports the start: if it no longer runs from now on, it has ended."""
        self._started = True

    def track(self, state: ContainerState, suspect: Callable[[], None]) -> ProcessIdentity:
        """Watch a container that runs, as `state` says; `suspect` is called when it has ended.

        Returns its main process, or `unknown_process()` where the kernel does not know it.
        """
        self._port = state.ports.get(self.guest, 0)
        self.identity = identify(state.pid) if state.pid else None
        if self.identity is None:
            self.suspected = True
            return unknown_process()
        self._memory = container_kernel.memory_events(self.identity.pid)
        self._watch(self.identity.pid, suspect)
        return self.identity

    def has_died(self) -> bool:
        """Whether its main process is known to be dead, whatever the engine reports."""
        return self.identity is not None and not is_alive(self.identity)

    def unwatch(self) -> None:
        """Stop watching its main process."""
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def exit(self, state: ContainerState | None) -> Exit:
        """How it ended. `state` is the engine's report, None if it has no such container."""
        if not self.may_have_run and (state is None or not state.started):
            return Exit(ran=False)
        if state is None:
            return Exit(code=None, why="its container was removed")
        if state.running:
            return Exit(code=None, why="its engine still reports it as running")
        if not state.started or state.code is None:
            return Exit(code=None, why=state.error)
        killed_by = state.code - _SIGNALLED
        if 0 < killed_by < signal.NSIG:
            why = self._out_of_memory_note(state, "out of memory") or state.error
            return Exit(code=0, signal=killed_by, why=why)
        why = self._out_of_memory_note(state, "one of its processes was killed, out of memory")
        return Exit(code=state.code, why=why or state.error)

    def _out_of_memory_note(self, state: ContainerState, what: str) -> str:
        limit = self.spec.memory_mib
        if not (state.oom or self._out_of_memory):
            return ""
        return f"{what}: its limit is {limit} MiB" if limit else what

    def _watch(self, pid: int, suspect: Callable[[], None]) -> None:
        def on_exit() -> None:
            # The control group, and the count with it, is removed in a moment.
            self._out_of_memory = container_kernel.oom_kills(self._memory) > 0
            self.unwatch()
            suspect()

        self.unwatch()
        try:
            self._pidfd = os.pidfd_open(pid)
            asyncio.get_running_loop().add_reader(self._pidfd, on_exit)
        except OSError:  # it has ended, or cannot be watched: the engine is asked instead
            self.unwatch()
            suspect()


def unknown_process() -> ProcessIdentity:
    """What is recorded in place of a process while the process is not known."""
    return ProcessIdentity(pid=0, started=0, boot_id=boot_id())
