"""Records that this Box cannot read: it cannot use them, but their keys are not free."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bridge.box.daemon import Box
from bridge.box.fleet.claims import Claims
from bridge.box.state import lifecycle
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.records import SlotRecord
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream.api import jetstream
from bridge.bus.jetstream.publish import store
from bridge.errors import ProtocolError
from bridge.gateway.errors import OrderRefused
from bridge.protocol import encode, now
from tests.boxes import boxed, instances, serving
from tests.fleet import Fleet
from tests.support import ask, box_config, connect, eventually, service_table

NEWER = (
    b'{"type":"service","key":"web","writer":"box-z",'
    b'"version":7,"target":"2 of class gold","slots":[0,1]}'
)
SERVICES = (service_table("web"), service_table("api"))


def state_of(box: Box) -> FleetState:
    assert box._components is not None
    return box._components.fleet.view.state


async def test_a_service_with_an_unreadable_record_keeps_its_instances(
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
        answer = await ask(gateway, "api", 3)  # web has two of the three places
        assert (answer.accepted, answer.target_replicas) == (False, 1)
        found = await instances(gateway, "web")
        assert [info.id for info in found] == [info.id for info in before]
        kept = await jetstream(gateway).get_last_msg("KV_box_services", "$KV.box_services.web")
        assert kept.data == NEWER


async def test_unreadable_records_are_known_from_the_first_view(
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
            kept = await jetstream(gateway).get_last_msg("KV_box_slots", "$KV.box_slots.api.0")
            assert kept.data == b'{"host":7}'


async def test_an_unreadable_order_counts_as_a_cordon_and_is_not_overwritten(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    newer = (
        b'{"type":"order","key":"cordon.box-b","writer":"box-z",'
        b'"draining":true,"reason":{"text":"disk","ticket":7},"version":9}'
    )
    key = "$KV.box_admin.cordon.box-b"
    async with Fleet.of(server, tmp_path) as fleet:
        boxes = [await fleet.join(name) for name in ("box-a", "box-b")]

        async def ordered(reason: str) -> None:
            """Return when all Boxes see an order with this reason, and answer requests."""

            def seen() -> bool:
                orders = [state_of(box).orders.get("box-b") for box in boxes]
                shown = [order and reason in order.reason for order in orders]
                return all(shown) and not any(box.blocker() for box in boxes)

            await eventually(seen, what=f"all see: {reason}")

        operator = fleet.operator
        await operator.cordon("box-b", reason="looks odd")
        await ordered("looks odd")
        await store(fleet.gateway, key, newer)
        await ordered("cannot be read")
        order = (await fleet.host("box-b")).order
        assert order is not None
        assert not order.draining
        assert set((await fleet.run(3)).values()) == {"box-a"}
        for change in (operator.cordon, operator.drain, operator.uncordon):
            with pytest.raises(
                OrderRefused, match="the order for 'box-b' cannot be read by Box"
            ) as refused:
                await change("box-b")
            assert refused.value.code == "unreadable_record"
        assert (await jetstream(fleet.gateway).get_last_msg("KV_box_admin", key)).data == newer
        await store(fleet.gateway, key, b"", headers={"KV-Operation": "DEL"})
        await ordered("looks odd")  # as it was when it could be read
        await operator.uncordon("box-b")


def claim(service: str = "web", instance_id: str = "web-z", host: str = "box-z") -> bytes:
    life = lifecycle.begin(instance_id, service, now())
    return encode(SlotRecord(host=host, host_id="z", config="c", seq=0, info=life.info))


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(claim(instance_id="Web 7"), id="instance"),
        pytest.param(claim(host="box.z"), id="host"),
        pytest.param(claim(service="api"), id="service"),
    ],
)
async def test_the_slot_of_a_claim_with_an_invalid_name_is_not_free(
    server: EmbeddedServer, tmp_path: Path, wrong: bytes
) -> None:
    config = box_config(tmp_path, server.url, *SERVICES)
    async with connect(server.url) as gateway, Box.running(config) as box:
        key = "$KV.box_slots.web.1"
        await ask(gateway, "web", 1)
        await serving(gateway, "web", 1)
        await store(gateway, key, wrong)
        await store(gateway, "$KV.box_slots.web.02", claim())
        state = state_of(box)
        await eventually(lambda: state.unreadable.get("web") == {1})
        await eventually(lambda: "slots: bad key" in box.metrics.refusals())
        assert box.metrics.refusals()["box_slots: unreadable record"] == 1
        assert state.slots_of("web").keys() == {0}
        assert (await ask(gateway, "web", 3)).accepted
        await serving(gateway, "web", 3)
        assert state.slots_of("web").keys() == {0, 2, 3}
        assert (await jetstream(gateway).get_last_msg("KV_box_slots", key)).data == wrong
        assert state.used.keys() == {"box-a"}, "no other host holds a slot"


@pytest.mark.slow
async def test_a_lost_host_with_an_unreadable_record_is_replaced(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path, *SERVICES) as (gateway, _):
        await ask(gateway, "web", 1)
        await serving(gateway, "web", 1)
        await store(gateway, "$KV.box_slots.web.1", claim())
        await store(gateway, "$KV.box_hosts.box-z", b"junk")
        await ask(gateway, "web", 2)
        assert "web-z" not in {info.id for info in await serving(gateway, "web", 2)}


@pytest.mark.slow
async def test_an_unreadable_record_stops_only_its_own_action(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Claims.take

    async def take_or_fail(self: Claims, service: str, slot: int) -> Any:
        if slot == 0:
            raise ProtocolError("SlotRecord", "seq", "expected `int`, got `str`")
        return await take(self, service, slot)

    monkeypatch.setattr(Claims, "take", take_or_fail)
    config = box_config(tmp_path, server.url, *SERVICES)
    async with connect(server.url) as gateway, Box.running(config) as box:
        assert (await ask(gateway, "web", 3)).accepted
        await serving(gateway, "web", 2)
        assert box.metrics.refusals()["plans: unreadable record"] >= 1
        monkeypatch.undo()
        await serving(gateway, "web", 3)  # the action is retried
