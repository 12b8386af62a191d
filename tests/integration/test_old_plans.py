"""Plans that a loss of the store overtakes while they are being carried out."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from bridge.box.daemon import Box
from bridge.box.fleet import restore
from bridge.box.fleet.claims import Claims
from bridge.box.runner.supervisor import _CONCURRENCY, Supervisor
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream.api import jetstream
from bridge.bus.jetstream.publish import store
from tests.boxes import serving
from tests.support import ask, box_config, connect, eventually, service_table

MANY = _CONCURRENCY + 4  # claims, of which some have to wait for others


class Held:
    """A supervisor whose claims for api take long, and a restorer that has not begun."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.claims = 0
        self.idle = 0
        self.doors = asyncio.Event(), asyncio.Event()
        self.mended = asyncio.Event()
        take, write_back, remake = Claims.take, restore._write_back, Supervisor._replace_ended

        async def take_long(claims: Claims, service: str, slot: int) -> Any:
            if service != "api":
                return await take(claims, service, slot)
            door = self.doors[self.claims >= MANY]
            self.claims += 1
            await door.wait()
            return None

        async def write_back_late(kind: Any, name: str) -> bool:
            await self.mended.wait()
            return await write_back(kind, name)

        def note_idle(supervisor: Supervisor) -> None:
            self.idle += 1
            remake(supervisor)

        patch.setattr(Claims, "take", take_long)
        patch.setattr(restore, "_write_back", write_back_late)
        patch.setattr(Supervisor, "_replace_ended", note_idle)


async def test_a_plan_goes_no_further_once_it_is_seen_that_the_store_has_lost_something(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    services = service_table("api"), service_table("web")
    config = box_config(tmp_path, server.url, *services, max_instances=MANY + 2)
    async with connect(server.url) as gateway, Box.running(config) as box:
        assert box._components is not None
        await ask(gateway, "web", 1)
        await serving(gateway, "web", 1)
        key = "$KV.box_services.web"
        older = (await jetstream(gateway).get_last_msg("KV_box_services", key)).data
        await ask(gateway, "web", 2)
        before = await serving(gateway, "web", 2)
        await ask(gateway, "api", MANY)
        await eventually(lambda: held.claims == _CONCURRENCY)
        box._components.runner.supervisor.plan_needed(
            None
        )  # as when a host joins: the next pass is over all
        held.doors[0].set()
        await eventually(
            lambda: held.claims == MANY + _CONCURRENCY, what="api's turn, before web's"
        )
        await store(gateway, key, older or b"")
        await eventually(box.blocker, what="the loss is seen")
        held.idle = 0
        held.doors[1].set()
        await eventually(lambda: held.idle, what="the pass is over")
        assert held.claims == MANY + _CONCURRENCY, "what had not begun is left"
        held.mended.set()
        await eventually(lambda: box.blocker() is None, within=20)
        await eventually(lambda: held.claims > MANY + _CONCURRENCY, what="what was left is done")
        after = await serving(gateway, "web", 2)
        assert {info.id for info in after} == {info.id for info in before}
