"""Many Boxes and many requests at once: one owner a slot, one effect a request, no room twice."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bridge.box.daemon import Box
from bridge.box.fleet.claims import Claims
from bridge.box.state.records import ServiceRecord
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream.api import jetstream
from bridge.bus.jetstream.kv_view import Record
from bridge.errors import Conflict
from bridge.protocol import decode
from tests.boxes import serving
from tests.faults.decisions import Decisions, decided
from tests.faults.hosts import fleet, settled
from tests.faults.killable import scaled
from tests.support import FIRST_PORT, TIMING, box_config, connect, service_table

pytestmark = pytest.mark.slow

SERVICES = [f"s{number}" for number in range(10)]
CAPACITY = 3 * 10  # three Boxes of ten


async def test_two_hundred_requests_at_the_edge_of_capacity_never_promise_the_same_room_twice(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    tables = [service_table(name) for name in SERVICES]
    async with fleet(server.url, tmp_path, ("box-a", "box-b", "box-c"), *tables) as (gateway, _):
        names = [f"r{number}" for number in range(200)]
        answers = await asyncio.gather(
            *(
                decided(gateway, SERVICES[number % 10], number % 7, name)
                for number, name in enumerate(names)
            )
        )
        found = await Decisions.read(gateway)
        promised = found.check(dict(zip(names, answers, strict=True)), CAPACITY)
        assert max(promised) == CAPACITY, "the edge was never met"
        assert any(not answer.accepted for answer in answers)


async def test_one_request_sent_to_all_boxes_has_one_effect_and_one_reply(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    names = ("box-a", "box-b", "box-c")
    async with fleet(server.url, tmp_path, names) as (gateway, boxes):
        answers = await asyncio.gather(*(decided(gateway, "web", 4, "same") for _ in range(30)))
        assert {(a.accepted, a.target_replicas, a.current_replicas) for a in answers} == {
            (True, 4, 0)
        }
        message = await jetstream(gateway).get_last_msg("KV_box_services", "$KV.box_services.web")
        record = decode(ServiceRecord, message.data or b"")
        assert record.version == 1
        assert [receipt.request_id for receipt in record.receipts] == ["same"]
        await settled(gateway, boxes, 4)


def _claims(box: Box) -> Claims:
    """For claiming past the planner, which has every Box but one leave a slot alone."""
    assert box._components is not None
    return box._components.runner.supervisor._claims


async def test_twenty_boxes_that_race_for_one_slot_have_one_winner(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Claims, "_is_due", lambda *_: True)  # or one would claim it by plan
    configs = [
        box_config(
            tmp_path,
            server.url,
            name=f"box-{number}",
            ports=f"{FIRST_PORT + 20 * number}-{FIRST_PORT + 20 * number + 19}",
            timing=TIMING.replace("lease = 3", "lease = 60"),  # all are in one process
        )
        for number in range(20)
    ]
    boxes = [Box(config) for config in configs]
    async with connect(server.url) as gateway, asyncio.TaskGroup() as tasks:
        work = []
        for box in boxes:
            work.append(tasks.create_task(box.run()))
            await box.wait_ready()
        await scaled(gateway, 1)
        await serving(gateway, "web", 1)
        outcomes = await asyncio.gather(
            *(_claims(box).take("web", 7) for box in boxes), return_exceptions=True
        )
        won = [outcome for outcome in outcomes if isinstance(outcome, Record)]
        assert len(won) == 1
        assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 19
        for box in boxes:
            box.stop()
        await asyncio.gather(*work)
