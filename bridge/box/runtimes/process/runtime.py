"""Runtime ``process``: each instance is a process group; there is nothing to install.

Each instance has a port and a directory with its logs. It carries a label in its environment, by
which a sweep finds strays. It runs under a shim (shim.py), which leads its group, outlives the Box,
and writes down the exit code. Neither has a right of the Box: see
`bridge.process_rights`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Final

import psutil

from bridge.box.runtimes.base import EngineLog, Exit, Handle, LivingInstance, Spec, Usage
from bridge.box.runtimes.foreign_errors import FOREIGN, call_in_thread, mapped_errors
from bridge.box.runtimes.logs import last_log_line
from bridge.box.runtimes.process import shim
from bridge.box.runtimes.process.account import Account, find_account
from bridge.box.runtimes.process.address_space import explain as explain_limit
from bridge.box.runtimes.process.handle import Process
from bridge.box.runtimes.process.process_groups import group_of, has_others, members
from bridge.box.runtimes.process.program import explain_program
from bridge.box.runtimes.process.usage import UsageMeter
from bridge.box.runtimes.process_identity import ProcessIdentity, identify, is_alive
from bridge.box.runtimes.sockets import holder, is_free, serves
from bridge.descriptors import is_exhausted
from bridge.errors import InstanceError, PortTaken
from bridge.log_protocol import LogRead
from bridge.process_rights import CHANGE_USER, RestrictedThreads

_log = logging.getLogger(__name__)

_RETRY: Final = 1.0  # seconds between attempts to watch a process without a descriptor
_POLL: Final = 0.05  # seconds between looks at a group that has lost its leader
_EXEC_TIMEOUT: Final = 1.0  # seconds for the shim to run the command, on a busy machine
_NOT_RUN: Final = (126, 127)  # a shell's exit codes for a program that it could not run
_KILL_TIMEOUT: Final = 10.0  # seconds after SIGKILL; only a process in the kernel takes longer
_UNREADABLE: Final = "the processes of this host cannot be read"


class ProcessRuntime:
    """See the module. `environ` is what instances inherit; `ports` are the ports they get."""

    def __init__(self, root: Path, ports: range, environ: Mapping[str, str]) -> None:
        self._root = root.absolute()
        self._ports = ports
        self._environ = environ
        self._next_port = 0
        self._processes: dict[str, Process] = {}
        self._cpu_use: Counter[int] = Counter(dict.fromkeys(os.sched_getaffinity(0), 0))
        self._meter = UsageMeter()
        self._sweep_due = True
        self._unprivileged = RestrictedThreads()
        self._switching = RestrictedThreads(CHANGE_USER)

    lacks: Final[Mapping[str, str]] = {}
    problem: Final = ""

    async def run(self) -> None:
        """Wait: the kernel wakes the event loop when an instance ends."""
        await asyncio.Event().wait()

    async def create(self, spec: Spec, report: Callable[[str], None]) -> Process:
        with mapped_errors("the instance's directory cannot be made"):
            shim.make_directories(spec.directory, _account(spec))
        process = self._processes[spec.instance_id] = Process(spec)
        return process

    async def start(
        self, handle: Handle, record: Callable[[ProcessIdentity, int], Awaitable[None]]
    ) -> None:
        process = self._process(handle)
        env = await process.spec.environment()
        process.port = self._take_port(process)
        process.popen, process.identity, process.grace_ends = None, None, 0.0
        process.ended, process.killed = asyncio.get_running_loop().create_future(), False
        process.command_started = False
        with mapped_errors(f"cannot start {' '.join(process.spec.command[:1])}"):
            try:
                process.popen = await asyncio.to_thread(self._spawn, process, env)
                process.identity = identify(process.popen.pid)
                self._limit(process)
                self._watch(process)
            except FOREIGN:
                process.discard()
                raise
        gate = process.popen.stdin
        assert gate is not None
        try:
            if process.identity is not None:
                await record(process.identity, process.port)
                process.command_started = True
                gate.write(b"go\n")
        finally:
            with contextlib.suppress(BrokenPipeError):  # it has ended: `watch` returns how
                gate.close()

    async def adopt(self, spec: Spec, identity: ProcessIdentity | None, port: int) -> Process:
        process = Process(spec)
        process.identity, process.port = identity, port
        process.ended = asyncio.get_running_loop().create_future()
        if identity is not None and is_alive(identity):
            with (
                mapped_errors(f"cannot adopt {spec.instance_id}"),
                contextlib.suppress(ProcessLookupError),
            ):
                self._watch(process)
                if spec.vcpus is not None:
                    process.cpus = os.sched_getaffinity(identity.pid)
                    self._cpu_use.update(process.cpus)
        if identity is None or not is_alive(identity):
            self._note_end(process)
        self._processes[spec.instance_id] = process
        return process

    async def list_living(self) -> Mapping[str, LivingInstance]:
        return await call_in_thread(_UNREADABLE, shim.list_living, self._root)

    async def watch(self, handle: Handle) -> Exit:
        ended = self._process(handle).ended
        assert ended is not None, "watched before it was started"
        return await asyncio.shield(ended)

    async def stop(self, handle: Handle, grace: float) -> Exit:
        process = self._process(handle)
        if process.ended is None:
            return Exit()
        await self._command_runs(process)
        process.grace_ends = asyncio.get_running_loop().time() + grace
        if not process.ended.done():
            await call_in_thread(_UNREADABLE, process.ask_to_end)
            await asyncio.wait([process.ended], timeout=grace)
        if not process.ended.done():
            process.killed = True
            process.signal_group(signal.SIGKILL)
            await asyncio.wait([process.ended], timeout=_KILL_TIMEOUT)
        if not process.ended.done():
            raise InstanceError(
                f"process {process.pid} has not ended {_KILL_TIMEOUT:g} s after SIGKILL"
            )
        return process.ended.result()

    async def _command_runs(self, process: Process) -> None:
        """Return when the shim runs the command: an earlier signal would reach the shim alone."""
        for _ in range(round(_EXEC_TIMEOUT / _POLL)):
            if not process.is_running:
                return
            if await call_in_thread(_UNREADABLE, shim.command_pid, process.pid):
                return
            await asyncio.sleep(_POLL)

    async def listens(self, handle: Handle) -> bool:
        return await call_in_thread(_UNREADABLE, self._listens, self._process(handle))

    async def usage(self, handles: Iterable[Handle]) -> Mapping[str, Usage]:
        groups = {process.pid: process for process in map(self._process, handles) if process.pid}
        return await call_in_thread(_UNREADABLE, self._usage, groups)

    def requests_inside(self, without: AbstractSet[int]) -> Counter[int]:
        return Counter()

    async def sweep(self) -> list[str]:
        if not self._sweep_due:
            return []
        self._sweep_due = False
        known = {process.pid for process in self._processes.values() if process.is_running}
        return await call_in_thread(_UNREADABLE, self._end_strays, known)

    async def last_line(self, handle: Handle) -> str:
        directory = self._process(handle).spec.directory
        return await call_in_thread("its log cannot be read", last_log_line, directory)

    async def engine_log(self, instance_id: str, read: LogRead) -> EngineLog | None:
        return None

    async def explain(self, handle: Handle) -> str:
        process = self._process(handle)
        return await call_in_thread("its log cannot be read", self._explain, process)

    def _explain(self, process: Process) -> str:
        ended = process.ended
        end = ended.result() if ended is not None and ended.done() else None
        if end is not None and end.code in _NOT_RUN:
            environ = {**self._environ, **process.spec.env}
            path = environ.get("PATH", os.defpath)
            return explain_program(process.spec.command[0], process.spec.cwd, path)
        return explain_limit(process.spec.memory_mib, process.spec.directory, end)

    async def end_all(self) -> None:
        running = [process for process in self._processes.values() if process.is_running]
        for process in running:
            process.killed = True
            process.signal_group(signal.SIGKILL)
        if ends := [process.ended for process in running if process.ended is not None]:
            await asyncio.wait(ends, timeout=_KILL_TIMEOUT)
        self._sweep_due = True
        try:
            await self.sweep()
        except InstanceError as exc:
            _log.warning("processes that instances left behind were not ended: %s", exc)

    def forget(self, handle: Handle) -> None:
        process = self._processes.pop(handle.instance_id, None)
        if process is not None:
            self._cpu_use.subtract(process.cpus)

    # ── starting ─────────────────────────────────────────────────────────────────────────

    def _process(self, handle: Handle) -> Process:
        assert isinstance(handle, Process)
        return handle

    def _take_port(self, process: Process) -> int:
        """The fixed port, if it is free; without one, the next free port of the range.

        The search starts after the last port taken: gateways may still route to a port just left.
        """
        if fixed := process.spec.port:
            if not is_free(fixed):
                raise PortTaken(fixed, holder(fixed))
            return fixed
        reserved = {other.port for other in self._processes.values()}
        for offset in range(len(self._ports)):
            index = (self._next_port + offset) % len(self._ports)
            port = self._ports[index]
            if port not in reserved and is_free(port):
                self._next_port = index + 1
                return port
        first, last = self._ports[0], self._ports[-1]
        raise InstanceError(f"no free port in {first}-{last}: widen [box] ports")

    def _spawn(self, process: Process, given: Mapping[str, str]) -> subprocess.Popen[bytes]:
        spec = process.spec
        if not Path(spec.cwd).is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "its cwd is not a directory", spec.cwd)
        port = str(process.port)
        command = [word.replace("{port}", port) for word in spec.command]
        user = _account(spec)
        env = {
            **self._environ,
            **(user.environment() if user else {}),
            **given,
            "PORT": port,
            "BOX_INSTANCE_ID": spec.instance_id,
            "BOX_SERVICE": spec.service,
        }
        return shim.spawn(
            spec.directory,
            command,
            cwd=spec.cwd,
            env=env,
            fence=spec.fence,
            memory=(spec.memory_mib or 0) << 20,
            user=user,
            threads=self._switching if user else self._unprivileged,
        )

    def _limit(self, process: Process) -> None:
        """Bind the shim to processors. Its command takes that over when it starts."""
        spec = process.spec
        if spec.vcpus is not None:
            least_used = sorted(self._cpu_use, key=lambda cpu: (self._cpu_use[cpu], cpu))
            self._cpu_use.subtract(process.cpus)
            process.cpus = set(least_used[: spec.vcpus])
            self._cpu_use.update(process.cpus)
            os.sched_setaffinity(process.pid, process.cpus)

    def _watch(self, process: Process) -> None:
        """Have the loop notice the end of the shim, and end what it leaves in its group."""
        loop = asyncio.get_running_loop()
        try:
            pidfd = os.pidfd_open(process.pid)
        except OSError as exc:
            if process.identity is None or not is_exhausted(exc):
                raise
            loop.call_later(_RETRY, self._watch_again, process)
            return

        def on_exit() -> None:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            end_group()

        def end_group() -> None:
            # A shell ends at once after SIGTERM; what it ran may need the grace.
            if loop.time() < process.grace_ends and _may_have_others(process.pid):
                process.signal_left_alone()
                loop.call_later(_POLL, end_group)
                return
            process.reap()
            self._note_end(process)

        try:
            loop.add_reader(pidfd, on_exit)
        except OSError:
            os.close(pidfd)
            raise

    def _watch_again(self, process: Process) -> None:
        """Watch a process for which there was no descriptor; until then, look at its pid."""
        assert process.identity is not None
        if is_alive(process.identity):
            with contextlib.suppress(ProcessLookupError):
                self._watch(process)
                return
        process.reap()
        self._note_end(process)

    def _note_end(self, process: Process) -> None:
        """The shim has ended. A sweep finds by the label what is left of the group."""
        self._sweep_due = True
        if process.ended is None or process.ended.done():
            return
        code = process.popen.returncode if process.popen else None
        read = functools.partial(
            shim.read_exit,
            process.spec.directory,
            code,
            killed=process.killed,
            started=process.command_started,
            fenced=process.spec.fence is not None,
        )
        if code is not None and code >= 0:  # it needs no file
            process.ended.set_result(read())
            return
        ended = process.ended

        def report(reading: asyncio.Future[Exit]) -> None:
            if not ended.done() and not reading.cancelled():
                ended.set_result(reading.result())

        asyncio.get_running_loop().run_in_executor(None, read).add_done_callback(report)

    # ── looking at processes; these run in a thread ──────────────────────────────────────

    def _listens(self, process: Process) -> bool:
        if is_free(process.port):
            return False
        if serves(members(process.pid), process.port):
            return True
        if is_free(process.port):
            return False  # another process had it for a moment
        raise PortTaken(process.port, holder(process.port))

    def _usage(self, groups: Mapping[int, Process]) -> dict[str, Usage]:
        cpu, memory = self._meter.measure(groups, time.monotonic())
        return {
            process.instance_id: Usage(cpu_percent=cpu[pid] / 10, memory_bytes=memory[pid])
            for pid, process in groups.items()
        }

    def _end_strays(self, known: set[int]) -> list[str]:
        strays = set()
        for pid in psutil.pids():
            if pid == os.getpid() or group_of(pid) in known:
                continue
            with contextlib.suppress(psutil.Error, OSError):
                process = psutil.Process(pid)
                name = shim.instance_of(process.environ().get(shim.LABEL, ""), self._root)
                # A child of a living instance may lead a group of its own.
                if name and not self._is_living(name):
                    process.kill()
                    strays.add(name)
        return sorted(strays)

    def _is_living(self, name: str) -> bool:
        process = self._processes.get(name)
        # An instance that is being spawned carries the label before its pid is known here.
        return process is not None and process.is_starting_or_running


def _account(spec: Spec) -> Account | None:
    """The user that the instance runs as; None if it is the Box's own."""
    return find_account(spec.user) if spec.user else None


def _may_have_others(leader: int) -> bool:
    """Whether the leader's group may have other living processes."""
    try:
        return has_others(leader)
    except FOREIGN:  # /proc cannot be read now: the grace bounds the wait
        return True
