"""A refusal of the server that passes ends no Box, and no error ends its instances."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge.box.daemon import Box
from bridge.box.fleet import streams
from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.errors import BusError, ServerTooOld, TopologyMismatch
from bridge.protocol import InstanceInfo
from bridge.settings import Config
from bridge.tasks import task_scope
from tests.boxes import alive, gone, labelled, serving
from tests.support import ask, box_config, connect, eventually

_ALL = 'publish: [">"], subscribe: [">"]'
_FEW = 'publish: ["_INBOX.>", "$JS.API.INFO"], subscribe: ["_INBOX.>"]'


def _with_permissions(allowed: str) -> str:
    return (
        "jetstream { sync_interval: always }\n"
        "authorization { users: ["
        "{ user: admin, password: a }, "
        f"{{ user: box, password: b, permissions: {{ {allowed} }} }}"
        "] }\n"
    )


def _with_account(jetstream: str) -> str:
    return (
        "jetstream { sync_interval: always }\n"
        f"accounts {{ A {{ users: [{{ user: box, password: b }}], jetstream: {jetstream} }} }}\n"
    )


class ChangingServer:
    """A nats-server whose configuration changes while it runs."""

    def __init__(self, server: EmbeddedServer, file: Path) -> None:
        self._server = server
        self._file = file

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, directory: Path, config: str) -> AsyncIterator[ChangingServer]:
        file = directory / "nats.conf"
        file.write_text(config)
        async with EmbeddedServer(directory / "nats", config=file) as server:
            yield cls(server, file)

    def url(self, login: str) -> str:
        return self._server.url.replace("nats://", f"nats://{login}@")

    def reload(self, config: str) -> None:
        self._file.write_text(config)
        os.kill(self._server.pid, signal.SIGHUP)


@contextlib.asynccontextmanager
async def _working(config: Config) -> AsyncIterator[Box]:
    """A ready Box whose failure fails the test."""
    async with Box.running(config) as box:
        yield box


def _processes(directory: Path, infos: list[InstanceInfo]) -> list[int]:
    root = directory / "data-box-a" / "instances"
    return [pid for info in infos for pid in labelled(str(root / info.id))]


async def _unready(box: Box) -> str:
    return await eventually(box.blocker, what="the Box is not ready")


async def _ready(box: Box) -> None:
    await eventually(lambda: box.blocker() is None, what="the Box is ready again")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("usual", "outage", "admin"),
    [
        (_with_account("enabled"), _with_account("disabled"), "box:b"),
        (_with_permissions(_ALL), _with_permissions(_FEW), "admin:a"),
    ],
    ids=["JetStream of the account", "permissions"],
)
async def test_a_box_waits_for_what_is_taken_away_for_a_while(
    tmp_path: Path, usual: str, outage: str, admin: str
) -> None:
    async with ChangingServer.running(tmp_path, usual) as server:
        config = box_config(tmp_path, server.url("box:b"))
        async with _working(config) as box, connect(server.url(admin)) as gateway:
            await ask(gateway, "web", 2)
            before = await serving(gateway, "web", 2)
            processes = _processes(tmp_path, before)
            server.reload(outage)
            assert "this Box" in await _unready(box)
            await asyncio.sleep(4 * config.timing.lease)  # the outage: longer than any deadline
            assert box.blocker()
            assert all(map(alive, processes))
            server.reload(usual)
            await _ready(box)
            assert await eventually(lambda: _answers(gateway, 3), what="the Box answers")
            after = await serving(gateway, "web", 3)
            assert {info.id for info in before} <= {info.id for info in after}


async def _answers(gateway: Connection, replicas: int) -> bool:
    with contextlib.suppress(Exception):
        return (await ask(gateway, "web", replicas, timeout=2.0)).accepted
    return False


@pytest.mark.slow
async def test_a_server_that_is_too_old_for_a_moment_ends_no_box(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = 0

    def count_refusal(version: str, needed: str) -> ServerTooOld:
        nonlocal refusals
        refusals += 1
        return ServerTooOld(version, needed)

    monkeypatch.setattr(topology, "ServerTooOld", count_refusal)
    async with _working(box_config(tmp_path, server.url)) as box, connect(server.url) as gateway:
        await ask(gateway, "web", 1)
        before = await serving(gateway, "web", 1)
        monkeypatch.setattr(topology, "_MIN_API_LEVEL", 99)
        await server.kill()
        await server.start()
        await eventually(lambda: refusals > 5, what="the Box has met the old server repeatedly")
        assert "is too old" in (box.blocker() or "")
        monkeypatch.setattr(topology, "_MIN_API_LEVEL", 1)
        await _ready(box)
        assert [i.id for i in await serving(gateway, "web", 1)] == [i.id for i in before]


@pytest.mark.slow
async def test_a_server_that_stays_too_old_is_final_at_the_start(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topology, "_MIN_API_LEVEL", 99)
    with pytest.raises(ServerTooOld, match=r"is too old: 2\.11 or newer is needed"):
        await Box(box_config(tmp_path, server.url)).run()


@pytest.mark.slow
async def test_an_error_that_ends_a_box_which_drains_leaves_its_instances_to_its_next_process(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "CONFIRM", 1.0)
    config = box_config(tmp_path, server.url, on_exit="drain")
    before: list[InstanceInfo] = []

    async def run_until_the_mismatch() -> None:
        box = Box(config)
        async with task_scope() as tasks:
            tasks.create_task(box.run())
            await box.wait_ready()
            async with connect(server.url) as gateway:
                await ask(gateway, "web", 2)
                before.extend(await serving(gateway, "web", 2))
                await server.kill()
                shutil.rmtree(server.directory / "jetstream")
                monkeypatch.setitem(topology._PROMISES, "retention", lambda wanted, found: False)
                await server.start()
                async with asyncio.timeout(120):
                    await asyncio.Event().wait()  # until the Box's failure ends this

    with pytest.raises(TopologyMismatch, match="retention"):
        await run_until_the_mismatch()
    monkeypatch.undo()
    processes = _processes(tmp_path, before)
    assert len(processes) == 4  # a shim and a service each
    assert all(map(alive, processes))
    async with _working(config), connect(server.url) as gateway:
        assert {info.id for info in await serving(gateway, "web", 2)} == {i.id for i in before}
    for pid in processes:
        await gone(pid)


@pytest.mark.slow
async def test_a_box_that_is_cancelled_without_a_stop_leaves_its_instances(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    config = box_config(tmp_path, server.url, on_exit="drain")
    async with connect(server.url) as gateway:
        box = Box(config)
        async with task_scope() as tasks:
            work = tasks.create_task(box.run())
            await box.wait_ready()
            await ask(gateway, "web", 1)
            processes = _processes(tmp_path, await serving(gateway, "web", 1))
            work.cancel()
            await asyncio.wait([work])
        assert processes
        assert all(map(alive, processes))
        async with task_scope() as tasks:
            box = Box(config)
            work = tasks.create_task(box.run())
            await box.wait_ready()
            box.stop()
            work.cancel()  # a second signal
            await asyncio.wait([work])
        for pid in processes:
            await gone(pid)


@pytest.mark.slow
@pytest.mark.parametrize("on_exit", ["drain", "leave"])
async def test_a_box_that_cannot_start_yet_can_be_stopped(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_exit: str
) -> None:
    tried = asyncio.Event()

    async def refuse(*_: object, **__: object) -> list[str]:
        tried.set()
        raise BusError("stream BOX_EVENTS does not exist and cannot be created")

    monkeypatch.setattr(topology, "ensure", refuse)
    box = Box(box_config(tmp_path, server.url, on_exit=on_exit))
    async with task_scope() as tasks:
        work = tasks.create_task(box.run())
        await tried.wait()
        box.stop()
        await work
    assert not box.ready
