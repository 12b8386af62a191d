"""One instance as a container: what is known of it here, and how it ended."""

from __future__ import annotations

import asyncio
import contextlib
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

_SIGNALLED: Final = 128  # an exit code of 128 + n means signal n, as shells have it


class Container:
    """The handle of one instance. `made` says that the engine has a container of its name,
    `let_go` that it may have run.

    `suspected` says that it may have ended: the engine is to be asked. `patience_ends` is until
    when the engine may take to see what the kernel has told, in the loop's time.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.made = False
        self.let_go = False
        self.ended: asyncio.Future[Exit] | None = None
        self.suspected = False
        self.concluding = False
        self.patience_ends = float("inf")
        self.identity: ProcessIdentity | None = (
            None  # of its main process, where the kernel knows it
        )
        self._off = False
        self._port = 0
        self._memory: Path | None = None
        self._out_of_memory = False
        self._pidfd = -1

    @property
    def instance_id(self) -> str:
        return self.spec.instance_id

    @property
    def name(self) -> str:
        """What the engine calls it."""
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
        """Its main process; 0 where the kernel does not know it."""
        return self.identity.pid if self.identity else 0

    @property
    def going(self) -> bool:
        """Whether it is about to run, or runs, as far as is known."""
        return self.ended is not None and not self.ended.done()

    @property
    def off(self) -> bool:
        """Whether its engine has let it go, and it is not known to have ended."""
        return self._off and self.going

    def begin(self) -> None:
        """It is about to be let go."""
        self.ended = asyncio.get_running_loop().create_future()
        self.suspected, self.patience_ends = False, float("inf")
        self.identity, self._port, self.let_go, self._off = None, 0, False, False

    def is_off(self) -> None:
        """Its engine says that it has let it go: from now on an end is an end."""
        self._off = True

    def took_off(self, state: ContainerState, suspect: Callable[[], None]) -> ProcessIdentity:
        """It runs, as `state` says. `suspect` is called once its main process has ended; the
        process is returned, or what stands for it where the kernel does not know it.
        """
        self._port = state.ports.get(self.guest, 0)
        self.identity = identify(state.pid) if state.pid else None
        if self.identity is None:
            self.suspected = True
            return unbegun()
        self._memory = container_kernel.memory_events(self.identity.pid)
        self._watch(self.identity.pid, suspect)
        return self.identity

    def is_gone(self) -> bool:
        """Whether its main process is known to be dead, whatever its engine says."""
        return self.identity is not None and not is_alive(self.identity)

    def unwatch(self) -> None:
        """Look at its process no more."""
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def exit(self, state: ContainerState | None) -> Exit:
        """How it ended; `state` is what the engine says, None if it has no such container."""
        if not self.let_go and (state is None or not state.begun):
            return Exit(ran=False)
        if state is None:
            return Exit(code=None, why="its container was removed")
        if state.running:
            return Exit(code=None, why="its engine has lost sight of it")
        if not state.begun or state.code is None:
            return Exit(code=None, why=state.error)
        killed_by = state.code - _SIGNALLED
        if 0 < killed_by < signal.NSIG:
            why = self._memory_ran_out(state, "out of memory") or state.error
            return Exit(code=0, signal=killed_by, why=why)
        why = self._memory_ran_out(state, "a process of it was killed, out of memory")
        return Exit(code=state.code, why=why or state.error)

    def _memory_ran_out(self, state: ContainerState, what: str) -> str:
        limit = self.spec.memory_mib
        if not (state.oom or self._out_of_memory):
            return ""
        return f"{what}: its limit is {limit} MiB" if limit else what

    def _watch(self, pid: int, suspect: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()

        def on_exit() -> None:
            # Its control group is gone in a moment, and the count with it.
            self._out_of_memory = container_kernel.oom_kills(self._memory) > 0
            self.unwatch()
            suspect()

        self.unwatch()
        with contextlib.suppress(ProcessLookupError):
            self._pidfd = os.pidfd_open(pid)
            loop.add_reader(self._pidfd, on_exit)
            return
        suspect()


def unbegun() -> ProcessIdentity:
    """What is written down in place of a process before there is one that can be told."""
    return ProcessIdentity(pid=0, started=0, boot_id=boot_id())
