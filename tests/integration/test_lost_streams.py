"""Streams that are deleted beneath their readers: noticed within 10 s, and restored."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge import RouteTable, ScaleClient
from bridge.box.daemon import Box
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.api import jetstream
from tests.support import box_config, connect, eventually


@pytest.mark.slow
@pytest.mark.parametrize("name", ["BOX_EVENTS", "BOX_REGISTRY"])
async def test_a_deleted_stream_is_restored_although_nothing_happens(
    server: EmbeddedServer, tmp_path: Path, name: str
) -> None:
    async with (
        connect(server.url) as gateway,
        Box.running(box_config(tmp_path, server.url)),
        RouteTable.open(gateway, "web") as table,
    ):
        await ScaleClient(gateway).scale("web", 2, wait=True)
        await jetstream(gateway).delete_stream(name)

        async def restored() -> bool:
            return await topology.stream_info(gateway, name) is not None

        await eventually(restored, within=20, what=f"{name} is restored")
        assert len(table.endpoints("web")) == 2
        async with RouteTable.open(gateway, "web") as late:
            await late.wait_ready("web", 2)
        await ScaleClient(gateway).scale("web", 3, wait=True)
        await table.wait_ready("web", 3)
        await eventually(lambda: table.stale_for() == 0, what="the table is current")


@pytest.mark.slow
async def test_a_registry_that_was_created_again_gets_every_registration(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    timing = "[timing]\nlease = 10\nregistration_renew = 600\nregistration_ttl = 1800\n"
    async with connect(server.url) as gateway:
        config = box_config(tmp_path, server.url, timing=timing)
        async with Box.running(config):
            await ScaleClient(gateway).scale("web", 2, wait=True)
            js = jetstream(gateway)
            stream = (await js.stream_info("BOX_REGISTRY")).config
            await js.delete_stream("BOX_REGISTRY")
            await js.add_stream(stream)

            async def all_there() -> bool:
                return (await js.stream_info("BOX_REGISTRY")).state.messages == 2

            await eventually(all_there, within=20, what="both are registered again")
