"""A crowded host joins, leaves and dies: no event is lost, and no other host is affected."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.bus.embedded_server import EmbeddedServer
from tests.bench.storm import Figures, death, scene_of, up_and_down
from tests.support import TIMING

COUNT = 40  # `python -m tests.bench.storm` has 500


@pytest.mark.slow
async def test_a_crowded_host_joins_leaves_and_dies(server: EmbeddedServer, tmp_path: Path) -> None:
    """The asserts are those of the steps: chains are whole, the host that stays keeps its lease."""
    figures = Figures(instances=COUNT)
    async with scene_of(tmp_path, server.url, COUNT, timing=TIMING) as scene:
        await up_and_down(scene, figures, idle=0)
        assert figures.events == COUNT * 5  # Booting, Ready, Draining, Stopping, Stopped
        await death(scene, figures)
    assert figures.replaced >= figures.withdrawn >= figures.noticed > 0
