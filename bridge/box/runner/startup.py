"""Starting a created instance, and waiting until it is ready.

The process is journaled before it may run its command. If another process takes the instance's
port, the instance is started again at another one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from bridge.box.runner.context import InstanceContext
from bridge.box.runner.exit_watch import ExitWatch
from bridge.box.runner.leave_request import LeaveRequest
from bridge.box.runner.probes import NOT_SENT
from bridge.box.runner.publication import InstancePublication
from bridge.box.runtimes.base import Handle, Spec
from bridge.box.runtimes.process_identity import ProcessIdentity
from bridge.descriptors import is_exhausted
from bridge.errors import InstanceError, PortTaken
from bridge.log_limit import LimitedLog

_log = logging.getLogger(__name__)
_exhausted = LimitedLog(_log)

_EXHAUSTED_RETRY: Final = 1.0  # seconds before a start that lacked a descriptor is tried again
_PORT_TRIES: Final = 5
_FIRST_PROBE: Final = 0.05  # seconds; probes before Ready come slower and slower
_SLOWEST_PROBE: Final = 0.5


class _Left(Exception):
    """The instance was asked to leave before its start was journaled."""


class Startup:
    """The start of one instance. `adopted` says that an earlier process of the Box started it."""

    def __init__(
        self,
        spec: Spec,
        context: InstanceContext,
        publication: InstancePublication,
        handle: Handle,
        leave: LeaveRequest,
        note: Callable[[str], None],
        *,
        adopted: bool,
    ) -> None:
        self._spec = spec
        self._config = publication.entry.service
        self._context = context
        self._publication = publication
        self._handle = handle
        self._leave = leave
        self._note = note
        self._adopted = adopted
        self._exit = ExitWatch(context.runtime, handle, leave)

    async def run(self) -> bool:
        """Whether it became ready; False if it was asked to leave first. Raises InstanceError."""
        runtime, handle = self._context.runtime, self._handle
        deadline = asyncio.get_running_loop().time() + self._config.start_timeout
        await self._leave.wait_written(self._publication.wait_written())
        for _ in range(_PORT_TRIES):
            if self._leave.is_made:
                return False
            if not self._adopted:
                try:
                    await self._start()
                except _Left:
                    return False
            self._adopted = False
            try:
                ready = await self._wait_ready(deadline)
            except PortTaken as exc:
                if self._spec.port:
                    raise
                await runtime.stop(handle, 0)
                self._note(f"{exc}; trying another port")
            else:
                if ready is not None:
                    return ready
        raise InstanceError(f"another process took its port {_PORT_TRIES} consecutive times")

    async def _start(self) -> None:
        """Start it; wait while the Box has no descriptor left for that. Raises _Left."""
        while True:
            try:
                return await self._context.runtime.start(self._handle, self._record_process)
            except InstanceError as exc:
                if not is_exhausted(exc):
                    raise
                _exhausted.report("start", "%s is started later: %s", self._publication.id, exc)
                await asyncio.sleep(_EXHAUSTED_RETRY)
            if self._leave.is_made:
                raise _Left

    async def _record_process(self, identity: ProcessIdentity, port: int) -> None:
        """Journal the process before it may run its command.

        Raises _Left if the instance leaves first.
        """
        await self._leave.wait_written(self._publication.record_process(identity, port))
        if self._leave.is_made:
            raise _Left

    async def _wait_ready(self, deadline: float) -> bool | None:
        """Whether it became ready, False if it was asked to leave first.

        None if it must be started again, because its Box was killed in the middle of the start.
        """
        runtime, handle = self._context.runtime, self._handle
        loop = asyncio.get_running_loop()
        pause = _FIRST_PROBE
        listening: bool | None = False
        problem: str | None = "nothing listens on its port"
        while True:
            end = await self._exit.exit_or_leave(pause)
            if end is not None and not end.ran:
                return None
            if end is not None:
                await runtime.listens(handle)  # raises PortTaken if that made it end
                raise InstanceError(await self._exit.describe(end))
            if self._leave.is_made:
                return False
            listening = listening or await self._listens()
            if listening is None:
                problem = NOT_SENT
            elif listening:
                problem = await self._context.prober.probe(self._config.probe, handle.port)
                if problem is None:
                    return True
            if problem == NOT_SENT:
                deadline += pause  # the instance is not to blame
            if loop.time() > deadline:
                late = f"not ready within {self._config.start_timeout:g} s: {problem}"
                raise InstanceError(await self._exit.explained(late))
            pause = min(pause * 1.5, _SLOWEST_PROBE)

    async def _listens(self) -> bool | None:
        """Whether it listens on its port; None if no descriptor is left to check it."""
        try:
            return await self._context.runtime.listens(self._handle)
        except InstanceError as exc:
            if is_exhausted(exc):
                return None
            raise
