"""What a request can expect of a service, as it crosses the bus."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bridge.box.daemon import Box
from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.protocol import InstancesRequest, InstancesResponse, ScaleResponse, decode, encode
from tests.boxes import boxed, serving
from tests.support import ask_for_reply, box_config, connect

EXPECTED = "Box-Expected-Revision"


async def scaled(gateway: Connection, replicas: int, **headers: str) -> tuple[str, str]:
    """The code of the reply, and the revision that it names."""
    named = {f"Box-{name.title().replace('_', '-')}": value for name, value in headers.items()}
    reply = await ask_for_reply(gateway, "web", replicas, headers=named)
    response = decode(ScaleResponse, reply.data)
    assert response.accepted == ("Box-Code" not in reply.headers)
    return reply.headers.get("Box-Code", ""), reply.headers["Box-Revision"]


async def test_a_client_that_expects_a_revision_never_overwrites_anothers_change(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path, max_instances=4) as (gateway, _):
        assert await scaled(gateway, 1, expected_revision="0") == ("", "1")
        assert await scaled(gateway, 2, expected_revision="0") == ("stale_revision", "1")
        assert await scaled(gateway, 2, expected_revision="minus one") == ("invalid_request", "1")
        assert await scaled(gateway, 9, all_or_nothing="true") == ("capacity_exceeded", "1")
        assert await scaled(gateway, 9, all_or_nothing="yes") == ("invalid_request", "1")
        assert await scaled(gateway, 9) == ("capped", "2")
        await serving(gateway, "web", 4)
        query = encode(InstancesRequest(service="web"))
        reply = await gateway.request("box.instances", query)
        page = decode(InstancesResponse, reply.data)
        assert reply.headers["Box-Revision"] == "2"
        assert (page.target, page.revision) == (4, 2)
        assert sorted(page.ranks.values()) == [0, 1, 2, 3]
        unknown = encode(InstancesRequest(service="nobody"))
        nothing = decode(InstancesResponse, (await gateway.request("box.instances", unknown)).data)
        assert (nothing.target, nothing.ranks) == (None, {})
        staying = {name for name, rank in page.ranks.items() if rank < 2}
        assert await scaled(gateway, 2, victims="highest-rank") == ("", "3")
        assert {info.id for info in await serving(gateway, "web", 2)} == staying


@pytest.mark.slow
async def test_a_revision_does_not_come_again_after_a_loss_of_the_store(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    config = box_config(tmp_path, server.url)
    async with connect(server.url) as gateway, Box.running(config):
        assert await scaled(gateway, 2) == ("", "1")
        assert await scaled(gateway, 1) == ("", "2")
    await server.stop()
    shutil.rmtree(server.directory / "jetstream")
    await server.start()
    config = box_config(tmp_path, server.url)
    async with connect(server.url) as gateway, Box.running(config):
        assert await scaled(gateway, 2, expected_revision="1") == ("stale_revision", "2")
        assert await scaled(gateway, 2, expected_revision="2") == ("", "3")
