"""The registry by itself: what keeps registrations alive, whatever the bus does."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import publish as bus_store
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.api import jetstream
from bridge.bus.registrations import Registrations
from bridge.errors import NoReply
from bridge.protocol import InstanceDeregistration, InstanceRegistration, now
from bridge.settings import Config
from bridge.tasks import task_scope
from tests.integration.test_passing_refusals import ChangingServer, _with_permissions
from tests.support import box_config, connect, eventually


@pytest.fixture
def config(server: EmbeddedServer, tmp_path: Path) -> Config:
    return box_config(tmp_path, server.url)


def registration(number: int) -> InstanceRegistration:
    return InstanceRegistration(
        instance_id=f"web-{number}",
        service="web",
        endpoint="127.0.0.1:80",
        metadata={},
        started_at=now(),
    )


async def kept(connection: Connection) -> int:
    """How many messages the registry's stream has ever taken."""
    return int((await jetstream(connection).stream_info("BOX_REGISTRY")).state.last_seq)


async def test_renewals_do_not_wait_for_one_another(
    server: EmbeddedServer, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = asyncio.Barrier(10)

    async def store(*args: Any, **kwargs: Any) -> bus_store.Acknowledgement:
        await together.wait()  # opens for ten at once
        return await bus_store.store(*args, **kwargs)

    monkeypatch.setattr("bridge.bus.registrations.store", store)
    async with connect(server.url) as connection:
        await topology.ensure(connection)
        registry = Registrations(connection, "box-a", config.timing, lambda: asyncio.sleep(0))
        async with asyncio.timeout(20), task_scope() as tasks:
            await asyncio.gather(*(registry.register(registration(n)) for n in range(10)))
            tasks.create_task(registry.run())

            async def renewed() -> bool:
                return await kept(connection) >= 20

            await eventually(renewed)


@pytest.mark.slow
async def test_withdrawals_that_are_refused_do_not_hold_up_the_others(tmp_path: Path) -> None:
    denied = 'publish: { allow: [">"], deny: ["box.deregister.api.>"] }, subscribe: [">"]'
    async with ChangingServer.running(tmp_path, _with_permissions(denied)) as server:
        config = box_config(tmp_path, server.url("box:b"))
        async with connect(server.url("box:b")) as connection:
            await topology.ensure(connection)
            registry = Registrations(connection, "box-a", config.timing, lambda: asyncio.sleep(0))
            for number in range(70):  # more than are stored at a time
                registry.withdraw(InstanceDeregistration(instance_id=f"a-{number}", service="api"))
            registry.withdraw(InstanceDeregistration(instance_id="web-1", service="web"))
            stored = asyncio.Event()
            registry.after_withdrawal("web-1", stored.set)
            async with asyncio.timeout(20), task_scope() as tasks:
                tasks.create_task(registry.run())
                await stored.wait()
            assert "70 registrations are not stored" in (registry.problem() or "")


async def test_a_stream_that_cannot_be_restored_yet_is_tried_again(
    server: EmbeddedServer, config: Config
) -> None:
    asked, there = asyncio.Event(), asyncio.Event()
    async with connect(server.url) as connection:  # no stream is there

        async def restore() -> None:
            if not asked.is_set():
                asked.set()
                raise NoReply("$JS.API.STREAM.INFO.BOX_REGISTRY", 5.0)
            await topology.ensure(connection)
            there.set()

        async def stored() -> bool:
            return await kept(connection) > 0

        registry = Registrations(connection, "box-a", config.timing, restore)
        async with asyncio.timeout(20), task_scope() as tasks:
            await registry.register(registration(1))
            assert asked.is_set()
            tasks.create_task(registry.run())
            await there.wait()
            await eventually(stored)
