"""Whatever ends a task or a thread of a Box ends the Box, with the reason, and no instance."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bridge.box.daemon import Box, _Lifecycle
from bridge.box.journal.journal import Journal
from bridge.box.journal.store import Change, JournalStore
from bridge.bus.core.nats_client import GuardedClient
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream.kv_view import KeyValueView
from bridge.errors import JournalError, NameRefused
from bridge.protocol import ScaleRequest, encode
from bridge.subjects import check_name
from bridge.tasks import task_scope
from tests.boxes import alive, gone, labelled, serving
from tests.support import ask, box_config, connect, eventually

WORK = (
    *("journal", "runtime", "streams", "stream checks", "lease", "outbox", "withdrawals"),
    *(
        "registrations",
        "resync",
        "restorer",
        "ticks",
        "supervisor",
        "sampler",
        "logs",
        "orphans",
        "responder",
    ),
)


_TWO = encode(ScaleRequest(service="web", replicas=2))


class InjectedFault(Exception):
    pass


async def _raise(fault: asyncio.Event) -> None:
    await fault.wait()
    raise InjectedFault("injected")


async def _return(fault: asyncio.Event) -> None:
    await fault.wait()


async def _run_until_the_fault(
    server: EmbeddedServer, directory: Path, fault: Callable[[], None]
) -> list[int]:
    """Run a Box that drains, with an instance, until `fault`; returns its instance's processes."""
    box = Box(box_config(directory, server.url, on_exit="drain"))
    processes: list[int] = []
    try:
        async with asyncio.timeout(60), task_scope() as tasks:
            tasks.create_task(box.run())
            await box.wait_ready()
            async with connect(server.url) as gateway:
                await ask(gateway, "web", 1)
                [info] = await serving(gateway, "web", 1)
                processes += labelled(str(directory / "data-box-a" / "instances" / info.id))
                fault()
                gateway.publish("box.scale", _TWO, reply=gateway.new_inbox())  # work for all parts
                await asyncio.Event().wait()  # until the Box's failure ends this
    finally:
        assert processes
        assert all(map(alive, processes))
        async with Box.running(box_config(directory, server.url, on_exit="drain")):
            pass  # it takes the instance over, and drains it
        for pid in processes:
            await gone(pid)
    return processes


@pytest.mark.slow
@pytest.mark.parametrize("ends", [_raise, _return], ids=["raises", "returns"])
@pytest.mark.parametrize("name", WORK)
async def test_a_task_of_a_box_that_ends_ends_the_box(
    server: EmbeddedServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    ends: Callable[[asyncio.Event], Any],
) -> None:
    fault, work = asyncio.Event(), _Lifecycle._work
    broken = [True]

    def with_fault(self: _Lifecycle) -> dict[str, Any]:
        listed = work(self)
        assert tuple(listed) == WORK, "each task has a test"
        if not broken:
            return listed
        broken.clear()
        before = listed[name]

        async def run() -> None:
            async with task_scope() as tasks:
                tasks.create_task(before)
                await ends(fault)

        return {**listed, name: run()}

    monkeypatch.setattr(_Lifecycle, "_work", with_fault)
    expected = InjectedFault if ends is _raise else RuntimeError
    with pytest.raises(expected, match=f"injected|the task {name} has ended"):
        await _run_until_the_fault(server, tmp_path, fault.set)


async def test_a_view_that_ends_ends_the_box(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault, run = asyncio.Event(), KeyValueView.run

    async def run_until_the_fault(self: KeyValueView[Any]) -> None:
        async with task_scope() as tasks:
            tasks.create_task(run(self))
            if self.bucket == "box_slots":
                await fault.wait()
                monkeypatch.undo()
            else:
                await asyncio.Event().wait()

    monkeypatch.setattr(KeyValueView, "run", run_until_the_fault)
    with pytest.raises(RuntimeError, match="the task view-box_slots has ended"):
        await _run_until_the_fault(server, tmp_path, fault.set)


@pytest.mark.parametrize("error", [OverflowError("injected"), SystemExit("injected")])
async def test_a_journal_that_cannot_be_written_ever_again_ends_the_box(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(self: JournalStore, changes: Sequence[Change]) -> None:
        monkeypatch.undo()
        raise error

    with pytest.raises(JournalError, match="injected"):
        await _run_until_the_fault(
            server,
            tmp_path,
            lambda: monkeypatch.setattr(JournalStore, "apply", fail),
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "flag"),
    [(GuardedClient, "_in_turn"), (Journal, "_hand_over_due")],
    ids=["of-the-client", "of-the-journal"],
)
async def test_a_failure_in_a_callback_ends_the_box(
    server: EmbeddedServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    flag: str,
) -> None:
    class Flag:
        """Set while the callback is due; the callback fails to clear it."""

        def __get__(self, instance: object, owner: type) -> bool:
            return False

        def __set__(self, instance: object, value: bool) -> None:
            if not value:
                monkeypatch.undo()
                raise InjectedFault("injected")

    with pytest.raises(InjectedFault, match="injected"):
        await _run_until_the_fault(
            server, tmp_path, lambda: monkeypatch.setattr(owner, flag, Flag(), raising=False)
        )


async def test_a_failure_in_a_callback_of_another_program_ends_no_box(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    def fail() -> None:
        failed.set()
        check_name("service", "of the program that runs the Box")  # raises NameRefused

    failed, seen = asyncio.Event(), list[object]()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: seen.append(context["exception"]))
    async with connect(server.url) as gateway, Box.running(box_config(tmp_path, server.url)):
        loop.call_soon(fail)
        await failed.wait()
        assert (await ask(gateway, "web", 0)).accepted
    loop.call_soon(fail)  # the program's own handler is back
    await eventually(lambda: len(seen) == 2)
    assert all(isinstance(each, NameRefused) for each in seen)


async def test_a_failure_in_the_report_of_the_journal_ends_the_box(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Journal, written: int, failure: JournalError | None) -> None:
        monkeypatch.undo()
        raise InjectedFault("injected")

    with pytest.raises(JournalError, match="injected"):
        await _run_until_the_fault(
            server, tmp_path, lambda: monkeypatch.setattr(Journal, "_note", fail)
        )
