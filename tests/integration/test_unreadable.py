"""Records that this Box cannot read: what a newer Box wrote is not there, but is not free."""

from __future__ import annotations

from pathlib import Path

from bridge.box.daemon import Box
from bridge.bus.server import EmbeddedServer
from bridge.bus.store import store
from tests.boxes import boxed, instances, serving
from tests.support import ask, box_config, connect, eventually, service_table

NEWER = b'{"version":7,"target":"2 of class gold","slots":[0,1]}'
SERVICES = (service_table("web"), service_table("api"))


async def test_a_service_whose_record_cannot_be_read_keeps_what_it_has(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path, *SERVICES, max_instances=3) as (gateway, _):
        await ask(gateway, "web", 2)
        before = await serving(gateway, "web", 2)
        await store(gateway, "$KV.box_services.web", NEWER)

        async def refused() -> str | None:
            return (await ask(gateway, "web", 1)).error

        error = await eventually(refused)
        assert error.startswith("the record of 'web' cannot be read by Box box-a")
        answer = await ask(gateway, "api", 3)  # two of the three places are web's
        assert (answer.accepted, answer.target_replicas) == (False, 1)
        found = await instances(gateway, "web")
        assert [info.id for info in found] == [info.id for info in before]
        kept = await gateway.jetstream.get_last_msg("KV_box_services", "$KV.box_services.web")
        assert kept.data == NEWER


async def test_what_cannot_be_read_is_known_from_the_first_view_on(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with Box.running(box_config(tmp_path, server.url, name="box-b")):
        pass  # the streams are there
    async with connect(server.url) as gateway:
        await store(gateway, "$KV.box_services.web", NEWER)
        await store(gateway, "$KV.box_slots.api.0", b'{"host":7}')
        async with Box.running(box_config(tmp_path, server.url, *SERVICES)):
            answer = await ask(gateway, "web", 1)
            assert str(answer.error).startswith("the record of 'web' cannot be read")
            assert (await ask(gateway, "api", 1)).accepted
            await serving(gateway, "api", 1)
            kept = await gateway.jetstream.get_last_msg("KV_box_slots", "$KV.box_slots.api.0")
            assert kept.data == b'{"host":7}'
