"""Waiting for the end of an instance, and describing it."""

from __future__ import annotations

import asyncio

from bridge.box.runner.leave_request import LeaveRequest
from bridge.box.runtimes.base import Exit, Handle, Runtime
from bridge.errors import InstanceError
from bridge.tasks import task_scope


class ExitWatch:
    """Watches one created instance, whose Box may ask it to leave."""

    def __init__(self, runtime: Runtime, handle: Handle, leave: LeaveRequest) -> None:
        self._runtime = runtime
        self._handle = handle
        self._leave = leave

    async def exit_or_leave(self, timeout: float | None) -> Exit | None:
        """How the instance ended; None if it was to leave, or `timeout` seconds passed, first."""
        async with task_scope() as tasks:
            exiting = tasks.create_task(self._runtime.watch(self._handle))
            leaving = tasks.create_task(self._leave.wait())
            await asyncio.wait(
                (exiting, leaving), timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
            return exiting.result() if exiting.done() else None

    async def ended_within(self, seconds: float) -> bool:
        """Whether the instance ended by itself in time. Raises InstanceError if it failed."""
        try:
            async with asyncio.timeout(seconds):
                end = await self._runtime.watch(self._handle)
        except TimeoutError:
            return False
        if end != Exit():
            raise InstanceError(await self.describe(end))
        return True

    async def describe(self, end: Exit) -> str:
        """The end with its last log line, and what explains it."""
        last = await self._runtime.last_line(self._handle)
        return await self.explained(f"{end}: {last}" if last else str(end))

    async def explained(self, message: str) -> str:
        """`message` with what the runtime knows about its cause."""
        explanation = await self._runtime.explain(self._handle)
        return f"{message} ({explanation})" if explanation else message
