"""Streams that are deleted beneath their readers: noticed within 10 s, and restored."""

from __future__ import annotations

import asyncio
from functools import partial
from operator import contains
from pathlib import Path

import pytest

from bridge import (
    Delivery,
    DurableEvents,
    EventStream,
    InstanceEvent,
    InstanceState,
    RouteTable,
    ScaleClient,
)
from bridge.box.daemon import Box
from bridge.box.fleet import streams
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


async def test_a_box_looks_for_its_streams_often_enough_to_restore_one_within_ten_seconds(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The promise is in the pause between two checks: a busy machine does not matter to it.
    assert 2 * streams._CHECK < 10
    monkeypatch.setattr(streams, "_CHECK", 0.2)
    calls: list[str] = []
    async with connect(server.url) as gateway, Box.running(box_config(tmp_path, server.url)):
        for name in ("BOX_EVENTS", "BOX_REGISTRY"):
            await gateway.listen(
                f"$JS.API.STREAM.*.{name}", lambda message: calls.append(message.subject)
            )
            await gateway.flush()
            await jetstream(gateway).delete_stream(name)
            made = f"$JS.API.STREAM.CREATE.{name}"
            await eventually(partial(contains, calls, made), what=f"{name} is made again")
            since = calls.index(f"$JS.API.STREAM.DELETE.{name}")
            until = calls.index(made)
            looks = calls[since:until].count(f"$JS.API.STREAM.INFO.{name}")
            assert 1 <= looks <= 4, "it is missed by the first check, and then looked for"


@pytest.mark.slow
async def test_readers_of_events_go_on_after_a_box_has_made_the_stream_again(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with (
        connect(server.url) as gateway,
        Box.running(box_config(tmp_path, server.url)),
        EventStream.open(gateway) as live,
        DurableEvents.open(gateway, "mailer") as durable,
    ):
        await ScaleClient(gateway).scale("web", 1, wait=True)
        first = {(await ready(live)), (await ready(durable))}
        assert len(first) == 1
        await jetstream(gateway).delete_stream("BOX_EVENTS")

        async def restored() -> bool:
            return await topology.stream_info(gateway, "BOX_EVENTS") is not None

        await eventually(restored, within=20, what="BOX_EVENTS is restored")
        await ScaleClient(gateway).scale("web", 2, wait=True)
        second = {(await ready(live)), (await ready(durable))}
        assert len(second) == 1
        assert first.isdisjoint(second)


async def ready(events: EventStream | DurableEvents) -> str:
    """The next instance that becomes Ready; a delivery is acknowledged."""
    async with asyncio.timeout(30):
        async for item in events:
            if isinstance(item, Delivery):
                await item.ack()
            event = item.event if isinstance(item, Delivery) else item
            if isinstance(event, InstanceEvent) and event.to_state is InstanceState.READY:
                return event.instance_id
    raise AssertionError("the events ended")
