"""One service's record is lost, or is no record any more: the others go on, and it comes back."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from bridge.box.daemon import Box
from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream.api import jetstream
from bridge.bus.jetstream.publish import store
from bridge.gateway.operator import Operator
from bridge.tasks import task_scope
from tests.boxes import boxed, instances, serving
from tests.support import ask, box_config, connect, eventually, service_table

KEY = "$KV.box_services.web"
SERVICES = (service_table("web"), service_table("api"))


async def stored(gateway: Connection, key: str = KEY) -> dict[str, object]:
    bucket = key.split(".")[1]
    message = await jetstream(gateway).get_last_msg(f"KV_{bucket}", key)
    data = message.data or b""
    return dict(json.loads(data)) if data.startswith(b'{"type":') else {}


async def comes_back(gateway: Connection, key: str = KEY) -> dict[str, object]:
    """The record, once a Box has written it back."""

    async def there() -> dict[str, object] | None:
        found = await stored(gateway, key)
        return found if found.get("writer") == "box-a" else None

    return await eventually(there, what=f"{key} is written back")


def version(number: int) -> bytes:
    return b'{"version":%d,"target":0,"slots":[],"config":{}}' % number


@pytest.mark.parametrize(
    "value",
    [
        b"{}",
        *(
            pytest.param(value, marks=pytest.mark.slow)
            for value in (
                *(b"", b"nonsense", b'{"stream":"KV_box_services","seq":9}'),
                *(version(2**63), version(2**53), version(2**50), version(-5)),
                b'{"type":"service","key":"web","writer":"box-z",' + version(2**53)[1:],
                b'{"type":"service","key":"api","writer":"box-a",' + version(9)[1:],
            )
        ),
    ],
    ids=lambda value: value[-40:].decode(),
)
async def test_what_is_no_record_is_replaced_by_the_one_that_the_boxes_know(
    server: EmbeddedServer, tmp_path: Path, value: bytes
) -> None:
    async with boxed(server, tmp_path, *SERVICES) as (gateway, _):
        await ask(gateway, "web", 1)
        [before] = await serving(gateway, "web", 1)
        await store(gateway, KEY, value)
        answer = await ask(gateway, "api", 1)
        assert answer.error is None, "the loss of web concerns web alone"
        assert (await comes_back(gateway))["version"] == 1

        async def scaled() -> bool:
            return (await ask(gateway, "web", 2)).accepted

        await eventually(scaled)
        found = await serving(gateway, "web", 2)
        assert before.id in [info.id for info in found]


@pytest.mark.slow
async def test_a_record_that_flips_stops_no_other_decision(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path, *SERVICES) as (gateway, _):
        await ask(gateway, "web", 1)
        await serving(gateway, "web", 1)

        async def flip() -> None:
            while True:
                for value, headers in ((b"{}", None), (b"", {"KV-Operation": "DEL"})):
                    await store(gateway, KEY, value, headers=headers)
                    await store(gateway, "$KV.box_services.unknown", value, headers=headers)

        async with task_scope() as tasks:
            tasks.create_task(flip())
            for count in (1, 2, 3, 2, 1, 2):
                assert (await ask(gateway, "api", count)).error is None
                await asyncio.sleep(0)
            await serving(gateway, "api", 2)
        assert (await comes_back(gateway))["target"] == 1
        await serving(gateway, "web", 1)


async def test_garbage_under_an_unknown_service_is_ignored_and_overwritten_by_a_decision(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path, *SERVICES) as (gateway, _):
        for value in (b"{}", b'{"stream":"KV_box_services","seq":9}'):
            await store(gateway, "$KV.box_services.api", value)
        assert (await ask(gateway, "api", 1)).accepted
        await serving(gateway, "api", 1)


async def test_an_order_that_is_lost_stays_in_force_and_comes_back(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    key = "$KV.box_admin.cordon.box-a"
    async with boxed(server, tmp_path, *SERVICES) as (gateway, _):
        await Operator(gateway).cordon("box-a", reason="disk")
        await store(gateway, key, b"{}")
        assert (await comes_back(gateway, key))["reason"] == "disk"
        [host] = await Operator(gateway).hosts()
        assert host.order is not None
        assert host.order.reason == "disk"


@pytest.mark.slow
async def test_a_box_starts_on_the_records_of_one_without_marks(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    config = box_config(tmp_path, server.url, *SERVICES, on_exit="leave")
    async with connect(server.url) as gateway:
        async with Box.running(config):
            await ask(gateway, "web", 1)
            [before] = await serving(gateway, "web", 1)
        record = await stored(gateway)
        old = {key: record[key] for key in record.keys() - {"type", "key", "writer"}}
        await store(gateway, KEY, json.dumps(old).encode())
        async with Box.running(box_config(tmp_path, server.url, *SERVICES)):
            assert [info.id for info in await instances(gateway, "web")] == [before.id]
            assert (await ask(gateway, "web", 2)).accepted
            await serving(gateway, "web", 2)
            assert (await stored(gateway))["version"] == 2
