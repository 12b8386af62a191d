"""One service over several hosts: counted, placed and scaled down as one."""

from __future__ import annotations

import asyncio
from pathlib import Path

from bridge.bus.server import EmbeddedServer
from bridge.protocol import InstanceState
from tests.boxes import fetch, instances, serving
from tests.fleet import Fleet
from tests.support import ask, eventually

S = InstanceState


async def test_the_idlest_go_whichever_host_they_are_on(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with Fleet.of(server, tmp_path, "box-a", "box-b") as fleet:
        placed = await fleet.run(4)
        infos = await serving(fleet.gateway, "web", 4)
        idle = {infos[0].id, infos[1].id}  # the oldest: by age alone the others would go
        work = [
            asyncio.ensure_future(fetch(info, "/slow?6")) for info in infos if info.id not in idle
        ]

        async def seen_busy() -> bool:
            there = await instances(fleet.gateway, "web")
            return {info.id for info in there if info.state is S.BUSY} == placed.keys() - idle

        await eventually(seen_busy, what="two are busy")
        answer = await ask(fleet.gateway, "web", 2)
        assert {info.id for info in answer.instances if info.state is S.DRAINING} == idle
        left = await serving(fleet.gateway, "web", 2)
        assert {info.id for info in left} == placed.keys() - idle
        await asyncio.gather(*work)
        await fleet.emptied()


async def test_a_host_that_joins_brings_room_and_moves_nothing(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with Fleet.of(server, tmp_path, "box-a", "box-b", max_instances=3) as fleet:
        before = await fleet.run(6)
        over = await ask(fleet.gateway, "web", 8)
        assert not over.accepted
        assert over.error == "Capped to 6 instances (max 6 total, 0 used by other services)"
        await fleet.join("box-c", max_instances=3)
        after = await fleet.run(8)
        assert {name: after[name] for name in before} == before, "nothing moved"
        assert [host for name, host in after.items() if name not in before] == ["box-c"] * 2
        await fleet.emptied()
