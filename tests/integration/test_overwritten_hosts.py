"""A foreign, stale or unreadable record under a live host's name: repaired, and no Box ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from bridge.box.daemon import Box
from bridge.box.fleet.view import FleetView
from bridge.box.state.records import HostRecord
from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream.publish import store
from bridge.errors import HostTaken
from bridge.protocol import encode
from bridge.tasks import task_scope
from tests.boxes import serving
from tests.support import Recorder, ask, box_config, connect, eventually

KEY = "$KV.box_hosts.box-a"
FOREIGN = HostRecord(
    host_id="foreign", runtime="process", cpus=1, max_instances=0, services={}, closing=True
)


def view_of(box: Box) -> FleetView:
    assert box._components is not None
    return box._components.fleet.view


@pytest.mark.parametrize(
    "kind",
    [
        "foreign",
        *(pytest.param(k, marks=pytest.mark.slow) for k in ("stale", "unreadable", "deleted")),
    ],
)
async def test_one_record_that_is_not_its_own_costs_a_live_host_nothing(
    server: EmbeddedServer, tmp_path: Path, kind: str
) -> None:
    async with (
        connect(server.url) as gateway,
        Box.running(box_config(tmp_path, server.url)) as box,
        Box.running(box_config(tmp_path, server.url, name="box-b", max_instances=2)) as other,
    ):
        recorder = await Recorder.listening(gateway)
        await ask(gateway, "web", 2)
        before = await serving(gateway, "web", 2)
        for info in before:
            await recorder.reached(info.id, "Ready")
        events = list(recorder.events)
        own = view_of(box).hosts.get("box-a")
        assert own is not None
        records = {
            "foreign": encode(FOREIGN),
            "stale": encode(replace(own.value, place="/elsewhere", since=0, services={})),
            "unreadable": b"{",
            "deleted": b"",
        }
        headers = {"KV-Operation": "DEL"} if kind == "deleted" else {}
        written = await store(gateway, KEY, records[kind], headers=headers)

        def rewritten(each: Box) -> bool:
            record = view_of(each).hosts.get("box-a")
            if record is None or record.revision <= written.seq:
                return False
            return record.value.host_id == own.value.host_id

        await eventually(lambda: rewritten(box) and rewritten(other), what="it is repaired")
        await eventually(lambda: box.blocker() is None, what="it works on")
        assert (await ask(gateway, "web", 2)).accepted
        assert {i.id for i in await serving(gateway, "web", 2)} == {i.id for i in before}
        assert recorder.events == events


@pytest.mark.slow
async def test_a_box_ends_when_another_one_renews_under_its_name(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async def renew(gateway: Connection) -> None:
        while True:
            await store(gateway, KEY, encode(FOREIGN))
            await asyncio.sleep(0.5)

    async def run(gateway: Connection) -> None:
        box = Box(box_config(tmp_path, server.url))
        async with asyncio.timeout(60), task_scope() as tasks:
            tasks.create_task(box.run())
            await box.wait_ready()
            tasks.create_task(renew(gateway))
            await asyncio.Event().wait()

    async with connect(server.url) as gateway:
        with pytest.raises(HostTaken, match="is live under another id"):
            await run(gateway)
