"""Tasks with an owner: a block of code that does not end before its tasks have ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Generator
from contextvars import Context
from typing import Any, TypeVar

T = TypeVar("T")


class _Scope(asyncio.TaskGroup):
    """A TaskGroup with `end`, which cancels its tasks.

    An exception in the block would cancel them, too. But when a TaskGroup of Python 3.13 fails, it
    cancels its owner again if the owner was ever cancelled, even if the block handled that.
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
        """Cancel the tasks that run, and accept no more."""
        self._ended = True
        for task in list(self._running):
            task.cancel()


@contextlib.asynccontextmanager
async def task_scope() -> AsyncIterator[asyncio.TaskGroup]:
    """A TaskGroup for the background tasks of a block.

    - When the block ends, tasks that still run are cancelled and awaited.
    - When a task fails, the block is cancelled and the failure is raised.
    - The block's own exception is raised without an exception group around it, and so is the
      failure of a single task.
    - A cancellation that arrives while the tasks end is raised when they have ended.
    """
    owner = asyncio.current_task()
    assert owner is not None
    cancels = owner.cancelling()
    raised: Exception | None = None
    try:
        async with _Scope() as group:
            try:
                yield group
            except Exception as exc:  # raised below, without the group around it
                raised = exc
            cancels = owner.cancelling()  # the block has handled the earlier ones
            group.end()
    except BaseExceptionGroup as failures:
        if raised is None:
            raise _unwrap(failures) from None
    if owner.cancelling() > cancels:  # a TaskGroup drops one that arrives while its tasks end
        raise asyncio.CancelledError
    if raised is not None:
        raise raised


async def run_always(work: Coroutine[Any, Any, None], name: str) -> None:
    """Run `work`, which lasts until it is cancelled. Raises RuntimeError if it returns.

    A task that ends without an error would go unnoticed by its TaskGroup.
    """
    await work
    raise RuntimeError(f"the task {name} has ended, and must not")


async def run_unless(event: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`; None, and `work` is cancelled, if `event` is set first."""
    async with task_scope() as tasks:
        working, waiting = tasks.create_task(work), tasks.create_task(event.wait())
        await asyncio.wait((working, waiting), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None


def raise_if_cancelled() -> None:
    """Raise CancelledError if this task was cancelled and a library swallowed the exception.

    asyncio.wait_for of Python 3.11 loses a cancellation that arrives together with its result. Only
    for tasks that are cancelled in order to end them.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _unwrap(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one exception in `group`, or `group` if there are several."""
    inner: BaseException = group
    while isinstance(inner, BaseExceptionGroup) and len(inner.exceptions) == 1:
        inner = inner.exceptions[0]
    return inner
