"""A block that owns tasks: how it ends, and what it raises."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from bridge.tasks import raise_if_cancelled, task_scope


class _Ending:
    """A task of a scope: once cancelled, it sets `cancelled` and ends after `may_end`."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.may_end = asyncio.Event()

    async def run(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()
            await self.may_end.wait()


@pytest.mark.parametrize("fails", [False, True])
async def test_a_cancellation_that_comes_while_the_tasks_end_is_not_lost(fails: bool) -> None:
    ending = _Ending()

    async def block() -> None:
        async with task_scope() as tasks:
            tasks.create_task(ending.run())
            await asyncio.sleep(0)
            if fails:
                raise ValueError

    async with asyncio.TaskGroup() as group:
        work = group.create_task(block())
        await ending.cancelled.wait()
        work.cancel()
        await asyncio.sleep(0)
        ending.may_end.set()
    assert work.cancelled()


async def test_a_timeout_that_passes_while_the_tasks_end_is_raised() -> None:
    ending, loop = _Ending(), asyncio.get_running_loop()

    async def block() -> None:
        async with asyncio.timeout(None) as limit, task_scope() as tasks:
            tasks.create_task(ending.run())
            await asyncio.sleep(0)
            limit.reschedule(loop.time())
            loop.call_soon(ending.may_end.set)  # after the timeout has come

    with pytest.raises(TimeoutError):
        await block()


async def test_a_cancellation_that_the_block_handled_is_over() -> None:
    async def block() -> str:
        async with task_scope():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        return "went on"

    async with asyncio.TaskGroup() as group:
        work = group.create_task(block())
        await asyncio.sleep(0)
        work.cancel()
    assert work.result() == "went on"


async def test_an_exception_of_the_block_or_a_single_task_is_raised_without_a_group() -> None:
    async def fail() -> None:
        raise ValueError("task")

    async def outlast() -> None:
        async with task_scope() as tasks:
            tasks.create_task(fail())
            await asyncio.Event().wait()

    with pytest.raises(ValueError, match="block"):
        async with task_scope():
            raise ValueError("block")
    with pytest.raises(ValueError, match="task"):
        await outlast()


async def test_a_swallowed_cancellation_is_raised_on_request() -> None:
    async def swallow() -> None:
        raise_if_cancelled()  # there is none yet
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        raise_if_cancelled()

    task = asyncio.ensure_future(swallow())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cleanup_after_a_cancellation_is_not_cancelled_again() -> None:
    steps = []

    async def clean_up() -> None:
        async with task_scope() as tasks:
            tasks.create_task(asyncio.Event().wait())
            await asyncio.sleep(0)
            steps.append("in the block")
        await asyncio.sleep(0)
        steps.append("after it")

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await clean_up()

    task = asyncio.ensure_future(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps == ["in the block", "after it"]


async def test_a_block_that_has_ended_accepts_no_tasks() -> None:
    refused = []

    async def outlive(tasks: asyncio.TaskGroup) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            with pytest.raises(RuntimeError, match="has ended"):
                tasks.create_task(asyncio.sleep(3600))
            refused.append(True)

    async with task_scope() as tasks:
        tasks.create_task(outlive(tasks))
        await asyncio.sleep(0)
    assert refused
