"""A loss of the store while plans are being carried out."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from bridge.box.daemon import Box
from bridge.box.fleet import restore
from bridge.box.fleet.claims import Claims
from bridge.box.runner.supervisor import _CONCURRENCY
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream.api import jetstream
from bridge.bus.jetstream.publish import store
from tests.boxes import serving
from tests.support import ask, box_config, connect, eventually, service_table

MANY = _CONCURRENCY + 4  # claims: some must wait for others


class DelayedClaims:
    """Claims for api that wait at a gate, and a restorer that waits for `restoring`."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.claims = 0
        self.gates = asyncio.Event(), asyncio.Event()
        self.restoring = asyncio.Event()
        take, write_back = Claims.take, restore._write_back

        async def take_long(claims: Claims, service: str, slot: int) -> Any:
            if service != "api":
                return await take(claims, service, slot)
            gate = self.gates[self.claims >= MANY]
            self.claims += 1
            await gate.wait()
            return None

        async def write_back_late(kind: Any, name: str) -> bool:
            await self.restoring.wait()
            return await write_back(kind, name)

        patch.setattr(Claims, "take", take_long)
        patch.setattr(restore, "_write_back", write_back_late)


@pytest.mark.slow
async def test_a_lost_record_holds_its_service_and_no_other(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delayed = DelayedClaims(monkeypatch)
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
        await eventually(lambda: delayed.claims == _CONCURRENCY)
        box._components.runner.supervisor.plan_needed(
            None
        )  # as when a host joins: every service is planned again
        delayed.gates[0].set()
        await eventually(
            lambda: delayed.claims == MANY + _CONCURRENCY, what="api is planned before web"
        )
        await store(gateway, key, older or b"")
        held = box._components.fleet.view.held
        await eventually(lambda: "web" in held, what="the Box notices the loss")
        assert box.blocker() is None
        delayed.gates[1].set()
        await eventually(lambda: delayed.claims > MANY + _CONCURRENCY, what="api goes on")
        assert "web" in held
        delayed.restoring.set()
        await eventually(lambda: "web" not in held, what="the record is back")
        after = await serving(gateway, "web", 2)
        assert {info.id for info in after} == {info.id for info in before}
