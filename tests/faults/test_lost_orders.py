"""What operators ordered for hosts, over a loss of the store: it stands, and what was lifted stays
lifted.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bridge.admin_protocol import Order
from bridge.bus.embedded_server import EmbeddedServer
from bridge.errors import BridgeError
from bridge.gateway.operator import Operator
from tests.faults.scene import Scene
from tests.support import eventually

pytestmark = pytest.mark.slow  # an outage has to be noticed


async def order(scene: Scene) -> Order | None:
    """The order for the Box's host, once the Box answers."""

    async def told() -> list[Order | None]:
        try:
            hosts = await Operator(scene.gateway).hosts()
        except BridgeError:
            return []
        return [host.order for host in hosts if host.name == scene.box.config.box.name]

    return (await eventually(told))[0]


async def lose(scene: Scene, server: EmbeddedServer, kept: Path | None = None) -> None:
    """The server comes back without its store, or with the one `kept`."""
    await server.kill()
    await scene.cut_off()
    shutil.rmtree(server.directory / "jetstream")
    if kept is not None:
        shutil.copytree(kept, server.directory / "jetstream")
    await server.start()


async def test_an_order_for_a_host_outlives_a_store_that_comes_back_empty(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with Scene.of(server, tmp_path) as scene:
        await Operator(scene.gateway).cordon(scene.box.config.box.name, reason="looks odd")
        before = await order(scene)
        assert before is not None
        assert before.reason == "looks odd"
        await lose(scene, server)
        assert await order(scene) == before


async def test_a_lifted_order_is_not_restored_by_an_older_store(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with Scene.of(server, tmp_path) as scene:
        operator, name, copy = Operator(scene.gateway), scene.box.config.box.name, tmp_path / "copy"
        await operator.cordon(name)
        await server.kill()
        await scene.cut_off()
        shutil.copytree(server.directory / "jetstream", copy)
        await server.start()
        assert await order(scene) is not None
        await operator.uncordon(name)
        assert await order(scene) is None
        await lose(scene, server, copy)
        assert await order(scene) is None
        await operator.cordon(name, reason="again")
        assert await order(scene) is not None
