"""One service on several hosts is counted, placed and scaled down as one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bridge import ScaleClient, ScaleConfig
from bridge.bus.embedded_server import EmbeddedServer
from bridge.protocol import (
    InstancesRequest,
    InstancesResponse,
    InstanceState,
    ScaleRequest,
    decode,
    encode,
)
from tests.boxes import boxed, fetch, instances, serving
from tests.fleet import Fleet
from tests.support import ask, eventually

S = InstanceState


async def test_scaling_down_ends_the_idlest_instances_on_any_host(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with Fleet.of(server, tmp_path, "box-a", "box-b") as fleet:
        placed = await fleet.run(4)
        infos = await serving(fleet.gateway, "web", 4)
        idle = {infos[0].id, infos[1].id}  # the oldest: by age alone the others would end
        gate = tmp_path / "gate"
        work = [
            asyncio.ensure_future(fetch(info, f"/until?{gate}"))
            for info in infos
            if info.id not in idle
        ]

        async def two_busy() -> bool:
            listed = await instances(fleet.gateway, "web")
            return {info.id for info in listed if info.state is S.BUSY} == placed.keys() - idle

        await eventually(two_busy, what="two are busy")
        answer = await ask(fleet.gateway, "web", 2)
        assert {info.id for info in answer.instances if info.state is S.DRAINING} == idle
        left = await serving(fleet.gateway, "web", 2)
        assert {info.id for info in left} == placed.keys() - idle
        gate.touch()
        await asyncio.gather(*work)
        await fleet.emptied()


async def test_a_host_that_joins_adds_capacity_and_moves_no_instance(
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


@pytest.mark.slow
async def test_a_box_with_an_outdated_view_does_not_end_a_wait(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Fleet.of(server, tmp_path, "box-a") as fleet:
        late = await fleet.join("box-b")
        await fleet.run(2)
        assert late._components is not None
        view, loop = late._components.fleet.view.services, asyncio.get_running_loop()
        take = view.take
        monkeypatch.setattr(view, "take", lambda *args: loop.call_later(0.3, take, *args))
        client = ScaleClient(fleet.gateway)
        for level in range(6):  # each Box answers about half of the requests
            config = ScaleConfig(env={"LEVEL": f"{level}"})
            await client.scale("web", 2, config=config, wait=True)
            for info in await serving(fleet.gateway, "web", 2):
                assert (await fetch(info, "/env"))["LEVEL"] == f"{level}"


async def test_a_requested_record_version_is_checked(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path) as (gateway, _):

        async def refusal(version: str) -> str | None:
            body = encode(InstancesRequest(service="web"))
            message = await gateway.request("box.instances", body, headers={"Box-Version": version})
            error = decode(InstancesResponse, message.data).error
            return f"{message.headers.get('Box-Code')}: {error}" if error else error

        body = encode(ScaleRequest(service="web", replicas=1))
        for _ in range(2):  # the second changes nothing, and has a version too
            answer = await gateway.request("box.scale", body)
            assert answer.headers["Box-Version"] == "1"
        assert await refusal("1") is None
        assert await refusal("2") == "not_ready: not ready: it has seen version 1 of 2; ask again"
        for wrong in ("", "-1", "one", "9" * 19):
            error = str(await refusal(wrong))
            assert "Box-Version" in error
            assert error.startswith("invalid_request: ")
