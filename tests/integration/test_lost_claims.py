"""Claims that the store has lost, in the view of a Box that did not hold them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats.js.errors
import pytest
from msgspec.structs import replace

from bridge.box.fleet.claims import Claims
from bridge.box.fleet.decisions import Decisions
from bridge.box.fleet.listener import FleetListener
from bridge.box.fleet.view import FleetView
from bridge.box.runner.publication import is_as_written, slot_facts
from bridge.box.state import lifecycle
from bridge.box.state.records import HostIdentity, HostRecord, Offer, ServiceRecord, SlotRecord
from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.api import jetstream
from bridge.bus.jetstream.publish import store
from bridge.bus.registrations import Registrations
from bridge.protocol import InstanceState, encode, now
from bridge.settings import Timing
from bridge.tasks import task_scope
from tests.boxes import boxed, instances, serving
from tests.support import ask, connect, eventually, service_table


def claim(host: str, instance_id: str = "web-1") -> SlotRecord:
    info = lifecycle.begin(instance_id, "web", now()).info
    return SlotRecord(host=host, host_id="id", config="c", seq=0, info=info)


@asynccontextmanager
async def watching(
    connection: Connection, lease: float, *listeners: FleetListener
) -> AsyncIterator[FleetView]:
    """A live view of the fleet, in which box-b holds slot 0."""
    await topology.ensure(connection)
    fleet = FleetView(connection, lease)
    for listener in listeners:
        fleet.subscribe(listener)
    async with task_scope() as tasks:
        for view in fleet.views:
            tasks.create_task(view.run())
        await fleet.wait_live()
        await fleet.slots.create("web.0", claim("box-b"))
        yield fleet


async def lose_store(connection: Connection, fleet: FleetView) -> None:
    await jetstream(connection).delete_stream("KV_box_slots")
    await topology.ensure(connection)
    await eventually(lambda: not fleet.state.slots_of("web"), what="the view shows the loss")


@pytest.mark.slow
async def test_a_lost_claim_belongs_to_its_host_until_it_is_written_again(
    server: EmbeddedServer,
) -> None:
    async with connect(server.url) as connection, watching(connection, 60) as fleet:
        await lose_store(connection, fleet)
        assert fleet.state.lost["web"] == {0: "box-b"}
        assert fleet.state.used == {"box-b": 1}  # its room stays reserved
        await fleet.wait_live()
        await fleet.slots.create("web.0", claim("box-b"))
        assert "web" not in fleet.state.lost
        assert fleet.state.used == {"box-b": 1}


@pytest.mark.slow
async def test_a_lost_claim_that_is_not_written_again_is_free_after_a_lease(
    server: EmbeddedServer,
) -> None:
    async with connect(server.url) as connection, watching(connection, 0.5) as fleet:
        await lose_store(connection, fleet)
        assert fleet.state.lost["web"] == {0: "box-b"}

        def free() -> bool:
            fleet.tick()
            return not fleet.state.lost.get("web")

        await eventually(free)
        assert fleet.state.used == {}


async def test_a_deleted_claim_is_not_lost(server: EmbeddedServer) -> None:
    async with connect(server.url) as connection, watching(connection, 60) as fleet:
        await fleet.slots.delete("web.0", fleet.slots.revision("web.0"))
        assert not fleet.state.slots_of("web")
        assert not fleet.state.lost


async def test_an_ended_instance_stays_known_while_its_record_shows_it_alive(
    server: EmbeddedServer,
) -> None:
    async with connect(server.url) as connection, watching(connection, 60) as fleet:
        ended, _ = lifecycle.step(
            lifecycle.begin("web-1", "web", now()), InstanceState.FAILED, now()
        )
        fleet.index.set_own_instance(ended.info)
        fleet.index.end_own_instance("web", 0, "web-1")
        record = fleet.state.slots_of("web")[0]
        assert fleet.state.latest(record) == ended.info
        revision = fleet.slots.revision("web.0")
        await fleet.slots.update("web.0", claim("box-b", "web-2"), revision)
        assert not fleet.state.own_instances


async def test_an_older_record_at_the_same_revision_counts_as_changed(
    server: EmbeddedServer,
) -> None:
    async with connect(server.url) as connection, watching(connection, 10) as fleet:
        record = fleet.slots.get("web.0")
        assert record is not None
        left = record.value.info
        facts = slot_facts(left)
        assert is_as_written(fleet.slots, "web.0", record.revision, facts)
        assert not is_as_written(fleet.slots, "web.0", record.revision + 1, facts)
        ready = slot_facts(replace(left, state=InstanceState.READY))
        assert not is_as_written(fleet.slots, "web.0", record.revision, ready)


class Owners(FleetListener):
    """The hosts before and after each change of the owner of web's slot 0."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, str]] = []

    def slot_owner_changed(
        self, service: str, slot: int, before: SlotRecord | None, claim: SlotRecord | None
    ) -> None:
        assert (service, slot) == ("web", 0)
        self.changes.append((before.host if before else "free", claim.host if claim else "free"))


@pytest.mark.slow
async def test_listeners_receive_each_change_of_a_slots_owner(server: EmbeddedServer) -> None:
    owners = Owners()
    async with connect(server.url) as connection, watching(connection, 60, owners) as fleet:
        slots, moved = fleet.slots, owners.changes
        assert moved == [("free", "box-b")]
        await slots.update("web.0", claim("box-b", "web-2"), slots.revision("web.0"))
        assert len(moved) == 1, "the host is the same"
        await slots.update("web.0", claim("box-c", "web-3"), slots.revision("web.0"))
        assert moved[1:] == [("box-b", "box-c")]
        await slots.delete("web.0", slots.revision("web.0"))
        await slots.create("web.0", claim("box-b"))
        assert moved[2:] == [("box-c", "free"), ("free", "box-b")]
        await lose_store(connection, fleet)
        assert moved[4:] == [("box-b", "free")]


def claims_of_box_a(connection: Connection, fleet: FleetView) -> Claims:
    async def never() -> None:
        raise AssertionError("no registration is sent")

    return Claims(
        HostIdentity(host="box-a", host_id="1"),
        fleet,
        Decisions(fleet, 2.0, now),
        Registrations(connection, "box-a", Timing(), never),
        {"web"},
        now,
    )


async def test_an_outdated_plan_claims_no_slot(server: EmbeddedServer) -> None:
    offer = HostRecord(
        host_id="1", runtime="process", cpus=2, max_instances=2, services={"web": Offer()}
    )
    async with connect(server.url) as connection, watching(connection, 60) as fleet:
        await fleet.hosts.put("box-a", offer)
        await fleet.services.create("web", ServiceRecord(version=1, target=4, slots=[0, 1, 2, 3]))
        claims = claims_of_box_a(connection, fleet)
        assert await claims.take("web", 7) is None, "the slot is not in the set"
        assert await claims.take("web", 1)
        assert await claims.take("web", 2)
        assert await claims.take("web", 3) is None, "there is no room for it"
        assert fleet.state.slots_of("web").keys() == {0, 1, 2}


async def test_an_outdated_plan_releases_no_claim_of_another_host(
    server: EmbeddedServer,
) -> None:
    async with connect(server.url) as connection, watching(connection, 60) as fleet:
        await claims_of_box_a(connection, fleet).release("web", 0)
        assert await fleet.slots.read("web.0") == fleet.slots.get("web.0") is not None


@pytest.mark.slow
@pytest.mark.parametrize("how", ["taken", "lost"])
async def test_a_changed_owner_is_handled_while_the_plan_of_another_service_takes_long(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    take, stuck = Claims.take, asyncio.Event()

    async def take_long(self: Claims, service: str, slot: int) -> Any:
        if service == "api":
            stuck.set()
            await asyncio.sleep(3600)
        return await take(self, service, slot)

    monkeypatch.setattr(Claims, "take", take_long)
    services = service_table("api"), service_table("web")
    async with boxed(server, tmp_path, *services) as (gateway, _):
        await ask(gateway, "web", 1)
        [mine] = await serving(gateway, "web", 1)
        await ask(gateway, "api", 1)
        await stuck.wait()
        if how == "taken":
            await store(gateway, "$KV.box_slots.web.0", encode(claim("box-b", "web-b")))

            async def left() -> bool:
                return mine.id not in {info.id for info in await instances(gateway, "web")}

            await eventually(left, what="the instance ends")
        else:
            await jetstream(gateway).delete_stream("KV_box_slots")

            async def claimed_again() -> bool:
                with contextlib.suppress(nats.js.errors.NotFoundError):
                    await jetstream(gateway).get_last_msg("KV_box_slots", "$KV.box_slots.web.0")
                    return True
                return False

            await eventually(claimed_again, what="the claim is written again")
