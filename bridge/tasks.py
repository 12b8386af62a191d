"""Every task has an owner: a block of code that ends with its tasks, and they with it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Generator
from contextvars import Context
from typing import Any, TypeVar

T = TypeVar("T")


class _Scope(asyncio.TaskGroup):
    """A TaskGroup that can be told to end its tasks.

    An exception would end them too; but a TaskGroup of Python 3.13 that fails cancels its owner
    once more if that was ever cancelled, be it that the block has heeded it long ago.
    """

    def __init__(self) -> None:
        super().__init__()
        self._running: set[asyncio.Task[Any]] = set()
        self._ended = False

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: Context | None = None,
    ) -> asyncio.Task[T]:
        if self._ended:
            coro.close()
            raise RuntimeError("the block that owned these tasks has ended")
        task = super().create_task(coro, name=name, context=context)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    def end(self) -> None:
        """Cancel what still runs, and take nothing more."""
        self._ended = True
        for task in list(self._running):
            task.cancel()


@contextlib.asynccontextmanager
async def task_scope() -> AsyncIterator[asyncio.TaskGroup]:
    """A TaskGroup for the background tasks of a block.

    When the block ends, tasks that still run are cancelled and awaited. When a task fails, the
    block is cancelled and the failure raised. The block's own exception comes out as it is, not
    wrapped in a group, and so does the failure of a single task. A cancellation that arrives
    while the tasks are being ended is raised once they have.
    """
    owner = asyncio.current_task()
    assert owner is not None
    cancels = owner.cancelling()
    raised: Exception | None = None
    try:
        async with _Scope() as group:
            try:
                yield group
            except Exception as exc:  # re-raised below, without the group around it
                raised = exc
            cancels = owner.cancelling()  # what came before now was the block's to heed
            group.end()
    except BaseExceptionGroup as failures:
        if raised is None:
            raise _bare(failures) from None
    if owner.cancelling() > cancels:  # a TaskGroup that is ending its tasks drops it
        raise asyncio.CancelledError
    if raised is not None:
        raise raised


async def run_unless(event: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """What `work` returns; None, with `work` cancelled, if `event` is set first."""
    async with task_scope() as tasks:
        working, waiting = tasks.create_task(work), tasks.create_task(event.wait())
        await asyncio.wait((working, waiting), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None


def raise_if_cancelled() -> None:
    """Raise the CancelledError that somebody else's code has swallowed, if this task's was.

    asyncio.wait_for of Python 3.11 loses one that arrives just as what it waits for is there. For
    tasks that are cancelled in order to end, and for nothing else.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _bare(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one exception in `group`, or `group` if there are several."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup) and len(found.exceptions) == 1:
        found = found.exceptions[0]
    return found
