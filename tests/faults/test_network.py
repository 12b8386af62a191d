"""What a Box survives between itself and its server: networks that stall, slow down and break."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bridge.bus.embedded_server import EmbeddedServer
from tests.boxes import serving
from tests.faults.history import states
from tests.faults.proxy import FaultyProxy
from tests.faults.scene import S, Scene, pids
from tests.support import eventually

pytestmark = pytest.mark.slow

LIFE_OF_A_VICTIM = [S.BOOTING, S.READY, S.FAILED]

Fault = Callable[[FaultyProxy], None]


@pytest.mark.parametrize(
    "fault",
    [FaultyProxy.half_open, FaultyProxy.cut_to_server, FaultyProxy.cut_to_client, FaultyProxy.cut],
)
async def test_a_box_that_was_cut_off_keeps_its_instances_and_serves_again(
    server: EmbeddedServer, tmp_path: Path, fault: Fault
) -> None:
    async with (
        FaultyProxy.to(server.url) as proxy,
        Scene.of(server, tmp_path, proxy.url) as scene,
    ):
        kept, victim = await scene.scale(2, "before")
        before = await pids([kept])
        fault(proxy)
        await scene.cut_off()
        successor = await scene.replaced(victim)
        await eventually(lambda: proxy.held or proxy.refused)
        proxy.mend()
        await scene.serves(2, "after")
        now_serving = await serving(scene.gateway, "web", 2)
        assert {info.id for info in now_serving} == {kept.id, successor.id}
        assert (await pids(now_serving))[kept.id] == before[kept.id]
        chains = await scene.chains()
        assert states(chains[kept.id]) == [S.BOOTING, S.READY]
        assert states(chains[victim.id]) == LIFE_OF_A_VICTIM
        assert states(chains[successor.id]) == [S.BOOTING, S.READY]
        assert len(chains) == 3


async def test_a_box_works_over_a_slow_link(server: EmbeddedServer, tmp_path: Path) -> None:
    async with (
        FaultyProxy.to(server.url) as proxy,
        Scene.of(server, tmp_path, proxy.url) as scene,
    ):
        kept, victim = await scene.scale(2, "before")
        before = await pids([kept])
        proxy.delay(0.3)
        successor = await scene.replaced(victim)
        await scene.serves(3, "during", patience=10.0)
        held = proxy.held
        assert held
        proxy.mend()
        await scene.serves(1, "after")
        chains = await scene.chains()
        assert states(chains[victim.id]) == LIFE_OF_A_VICTIM
        assert states(chains[successor.id])[:2] == [S.BOOTING, S.READY]
        assert len(chains) == 4
        [left] = await serving(scene.gateway, "web", 1)
        assert left.id != kept.id or (await pids([left])) == before
        assert scene.counted("disconnected") == 0
