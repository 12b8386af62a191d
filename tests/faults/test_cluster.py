"""A fleet on three nats-servers rides through the loss of any one of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bridge.box.model import ServiceRecord
from bridge.bus.connection import Connection
from bridge.bus.store import store
from bridge.errors import BusError
from bridge.protocol import decode
from tests.boxes import serving
from tests.faults.cluster import Cluster
from tests.faults.history import History
from tests.faults.hosts import fleet, settled
from tests.support import ask, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

_RESUME = 10.0  # seconds until a cluster that lost its leader takes writes again


@pytest.mark.parametrize("stream", ["KV_box_services", "BOX_EVENTS"])
async def test_a_leader_that_is_killed_costs_nothing_that_was_acknowledged(
    tmp_path: Path, stream: str
) -> None:
    async with (
        Cluster.running(tmp_path) as cluster,
        fleet(cluster.url, tmp_path, ("box-a", "box-b", "box-c"), replicas=3) as (gateway, boxes),
    ):
        acknowledged = await _asked(gateway, "before", 5)
        there = await settled(gateway, boxes, 5)
        victim = await cluster.leader(gateway, stream)
        work = asyncio.ensure_future(_asked(gateway, "during", 12))
        await victim.kill()
        await eventually(lambda: _takes_writes(gateway), within=_RESUME + 5, what="writes resume")
        acknowledged |= await work
        await victim.start()
        last = await settled(gateway, boxes, 5)
        assert {info.id for info in there} == {info.id for info in last}, "no instance ended"
        message = await gateway.jetstream.get_last_msg("KV_box_services", "$KV.box_services.web")
        record = decode(ServiceRecord, message.data or b"")
        assert acknowledged <= {receipt.request_id for receipt in record.receipts}
        (await History.settled(gateway, await serving(gateway, "web", 5))).check()


async def _asked(gateway: Connection, kind: str, count: int) -> set[str]:
    """The ids of so many requests for the same five, each asked until it was acknowledged."""
    acknowledged = set()
    for number in range(count):
        name = f"{kind}-{number}"

        async def accepted(name: str = name) -> bool:
            try:
                return (await ask(gateway, "web", 5, request_id=name, timeout=2.0)).accepted
            except BusError:
                return False

        await eventually(accepted, within=60, what=f"{name} is acknowledged")
        acknowledged.add(name)
    return acknowledged


async def _takes_writes(gateway: Connection) -> bool:
    """Whether the bucket of orders, which nothing else writes, takes a write."""
    try:
        await store(gateway, "$KV.box_admin.probe", b"{}", timeout=1.0)
    except BusError:
        return False
    return True
