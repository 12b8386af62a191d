"""What a running Box survives of its server: death, a freeze, and the loss of its store."""

from __future__ import annotations

import contextlib
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from nats.js.errors import NotFoundError

from bridge.box.daemon import Box
from bridge.box.journal.store import CUT_OFF, read_snapshot
from bridge.box.state.records import ServiceRecord, SlotRecord
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream.api import jetstream
from bridge.protocol import ScaleRequest, ScaleResponse, decode, encode, format_time, now
from bridge.subjects import EXPIRES_AT
from tests.boxes import serving
from tests.faults.history import read_history, states
from tests.faults.proxy import FaultyProxy
from tests.faults.scene import BACK, S, Scene, pids
from tests.support import FIRST_PORT, box_config, eventually

pytestmark = pytest.mark.slow

SERVING = [S.BOOTING, S.READY]
VICTIM = [S.BOOTING, S.READY, S.FAILED]


async def service_record(scene: Scene) -> ServiceRecord:
    """What the store has of the service."""
    raw = await jetstream(scene.gateway).get_last_msg("KV_box_services", "$KV.box_services.web")
    return decode(ServiceRecord, raw.data or b"")


async def slot_holders(scene: Scene) -> dict[int, str]:
    """Who runs which slot, as the store has it."""
    holders = {}
    for slot in (await service_record(scene)).slots:
        subject = f"$KV.box_slots.web.{slot}"
        with contextlib.suppress(NotFoundError):
            raw = await jetstream(scene.gateway).get_last_msg("KV_box_slots", subject)
            holders[slot] = decode(SlotRecord, raw.data or b"").info.id
    return holders


async def held_as(scene: Scene, wanted: dict[int, str]) -> bool:
    return await slot_holders(scene) == wanted


# ── the server ───────────────────────────────────────────────────────────────────────────


async def test_a_killed_server_costs_no_instance_and_no_event(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with Scene.of(server, tmp_path) as scene:
        kept, victim = await scene.scale(2, "before")
        before = await pids([kept])
        await server.kill()
        await scene.cut_off()
        successor = await scene.replaced(victim)
        assert not server.pid  # all that was local
        assert read_snapshot(scene.box.config.data_dir / "journal.db").facts[CUT_OFF]
        await server.start()
        await scene.serves(2, "after")
        assert CUT_OFF not in read_snapshot(scene.box.config.data_dir / "journal.db").facts
        assert (await pids(await serving(scene.gateway, "web", 2)))[kept.id] == before[kept.id]
        chains = await scene.chains()
        lives = {name: states(chain) for name, chain in chains.items()}
        assert lives == {kept.id: SERVING, victim.id: VICTIM, successor.id: SERVING}


async def test_a_frozen_server_costs_no_instance_and_no_event(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with Scene.of(server, tmp_path) as scene:
        kept, victim = await scene.scale(2, "before")
        before = await pids([kept])
        server.pause()
        successor = await scene.replaced(victim)  # before the freeze is even noticed
        await scene.cut_off()
        server.resume()
        await scene.serves(2, "after")
        assert (await pids(await serving(scene.gateway, "web", 2)))[kept.id] == before[kept.id]
        chains = await scene.chains()
        lives = {name: states(chain) for name, chain in chains.items()}
        assert lives == {kept.id: SERVING, victim.id: VICTIM, successor.id: SERVING}


async def test_a_server_that_hangs_up_with_an_error_is_connected_to_again(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with (
        FaultyProxy.to(server.url) as proxy,
        Scene.of(server, tmp_path, proxy.url) as scene,
    ):
        before = await pids(await scene.scale(2, "before"))
        proxy.inject(b"-ERR 'User Authentication Expired'\r\n")
        await scene.cut_off()
        assert proxy.injected
        await scene.serves(3, "after")
        after = await pids(await serving(scene.gateway, "web", 3))
        assert before.items() <= after.items()
        assert [states(chain) for chain in (await scene.chains()).values()] == [SERVING] * 3


# ── its store ────────────────────────────────────────────────────────────────────────────


async def test_an_empty_store_gets_the_desired_state_back_and_costs_no_instance(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with Scene.of(server, tmp_path) as scene:
        infos = await scene.scale(3, "first")
        before, record = await pids(infos), await service_record(scene)
        holders = await slot_holders(scene)
        lost = await read_history(scene.gateway)
        await server.kill()
        await scene.cut_off()
        shutil.rmtree(server.directory / "jetstream")
        await server.start()
        answer = await scene.serves(3, "first")  # no second effect:
        assert answer.target_replicas == 3
        assert await service_record(scene) == record
        assert await pids(await serving(scene.gateway, "web", 3)) == before
        assert await slot_holders(scene) == holders
        told = await read_history(scene.gateway)
        assert {one.event.to_state for one in told} <= {S.READY, S.BUSY}, "nothing has happened"
        await scene.serves(1, "later")
        chains = await scene.chains(lost)
        ends = sorted(len(states(chain)) for chain in chains.values())
        assert (len(chains), ends) == (3, [2, 5, 5])


async def test_an_older_store_is_brought_up_to_date_and_costs_no_instance(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with Scene.of(server, tmp_path) as scene:
        await scene.scale(1, "first")
        await scene.chains()
        store, copy = server.directory / "jetstream", tmp_path / "copy"
        await server.kill()
        await scene.cut_off()
        shutil.copytree(store, copy)
        await server.start()
        await scene.serves(3, "second")
        await scene.serves(2, "third")
        infos = await serving(scene.gateway, "web", 2)
        before, record = await pids(infos), await service_record(scene)
        await scene.chains()
        holders = await slot_holders(scene)
        lost = await read_history(scene.gateway)
        await server.kill()
        await scene.cut_off()
        shutil.rmtree(store)
        copy.rename(store)
        await server.start()
        for request, replicas in (("second", 3), ("third", 2)):
            answer = await scene.answers(replicas, request)
            assert answer.target_replicas == replicas  # as it was answered then
        assert await service_record(scene) == record
        assert await pids(await serving(scene.gateway, "web", 2)) == before
        assert await slot_holders(scene) == holders
        await scene.serves(3, "fourth")
        chains = await scene.chains(lost)
        ends = sorted(len(states(chain)) for chain in chains.values())
        assert (len(chains), ends) == (4, [2, 2, 2, 5])


async def test_a_box_adds_its_instances_to_an_older_store(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with Scene.of(server, tmp_path) as scene:
        [victim] = await scene.scale(1, "first")
        await scene.chains()
        store, copy = server.directory / "jetstream", tmp_path / "copy"
        await server.kill()
        await scene.cut_off()
        shutil.copytree(store, copy)
        await server.start()
        await scene.serves(1, "first")
        successor = await scene.replaced(victim)
        await eventually(lambda: held_as(scene, {0: successor.id}))
        await scene.chains()
        lost = await read_history(scene.gateway)
        await server.kill()
        await scene.cut_off()
        shutil.rmtree(store)
        copy.rename(store)
        await server.start()
        await scene.serves(1, "first")
        await eventually(lambda: held_as(scene, {0: successor.id}))
        [left] = await serving(scene.gateway, "web", 1)
        assert left.id == successor.id
        lives = {name: states(chain) for name, chain in (await scene.chains(lost)).items()}
        assert lives == {victim.id: VICTIM, successor.id: SERVING}


async def test_an_instance_that_crashes_while_the_store_is_lost_is_replaced_in_its_slot(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with Scene.of(server, tmp_path) as scene:
        kept, victim = await scene.scale(2, "first")
        before = await pids([kept])
        lost = await read_history(scene.gateway)
        slots = {name: slot for slot, name in (await slot_holders(scene)).items()}
        await server.kill()
        await scene.cut_off()
        successor = await scene.replaced(victim)
        shutil.rmtree(server.directory / "jetstream")
        await server.start()
        await scene.serves(2, "first")
        assert (await pids(await serving(scene.gateway, "web", 2)))[kept.id] == before[kept.id]
        holders = await slot_holders(scene)
        assert holders == {slots[kept.id]: kept.id, slots[victim.id]: successor.id}
        lives = {name: states(chain) for name, chain in (await scene.chains(lost)).items()}
        assert lives == {kept.id: SERVING, victim.id: VICTIM, successor.id: SERVING}


async def test_a_restarted_box_restores_a_store_that_was_lost_meanwhile(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with Scene.of(server, tmp_path, on_exit="leave") as scene:
        infos = await scene.scale(2, "first")
        before, record = await pids(infos), await service_record(scene)
        holders = await slot_holders(scene)
        await scene.chains()
        lost = await read_history(scene.gateway)
    await server.kill()
    shutil.rmtree(server.directory / "jetstream")
    await server.start()
    async with Scene.of(server, tmp_path) as scene:
        await scene.serves(2, "first")
        assert await service_record(scene) == record
        await eventually(lambda: held_as(scene, holders))
        assert await pids(await serving(scene.gateway, "web", 2)) == before
        await scene.serves(3, "second")
        assert [states(chain) for chain in (await scene.chains(lost)).values()] == [SERVING] * 3


# ── requests that come late ──────────────────────────────────────────────────────────────


async def test_a_request_delayed_beyond_its_deadline_has_no_effect(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with (
        FaultyProxy.to(server.url) as proxy,
        Scene.of(server, tmp_path, proxy.url) as scene,
    ):
        await scene.scale(1, "before")
        record = await service_record(scene)
        proxy.cut_to_client()
        expires = now() + timedelta(seconds=0.5)
        asked = ScaleRequest(service="web", replicas=5, request_id="late")
        answers: list[ScaleResponse] = []
        inbox = scene.gateway.new_inbox()
        await scene.gateway.listen(
            inbox, lambda message: answers.append(decode(ScaleResponse, message.data))
        )
        scene.gateway.publish(
            "box.scale", encode(asked), headers={EXPIRES_AT: format_time(expires)}, reply=inbox
        )
        await eventually(lambda: now() > expires and proxy.held)
        proxy.mend()
        await eventually(lambda: answers, within=BACK)
        [answer] = answers
        assert not answer.accepted
        assert "expired" in str(answer.error)
        assert await service_record(scene) == record
        await scene.serves(1, "before")
        assert [states(chain) for chain in (await scene.chains()).values()] == [SERVING]


# ── a fleet ──────────────────────────────────────────────────────────────────────────────


async def test_boxes_that_lose_their_store_together_keep_what_each_of_them_runs(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    other = box_config(
        tmp_path,
        server.url,
        name="box-b",
        max_instances=12,
        ports=f"{FIRST_PORT + 500}-{FIRST_PORT + 999}",
    )
    async with Scene.of(server, tmp_path) as scene, Box.running(other):
        infos = await scene.scale(6, "first")
        before, record = await pids(infos), await service_record(scene)
        holders = await slot_holders(scene)
        own = set(scene.entries)
        assert 0 < len(own) < 6  # some are the other Box's
        await scene.chains()
        lost = await read_history(scene.gateway)
        await server.kill()
        await scene.cut_off()
        shutil.rmtree(server.directory / "jetstream")
        await server.start()
        await scene.serves(6, "first")
        assert await service_record(scene) == record
        assert await slot_holders(scene) == holders
        assert await pids(await serving(scene.gateway, "web", 6)) == before
        await scene.serves(7, "second")  # on both, whatever they had in mind is planned by now
        chains = await scene.chains(lost)
        assert [states(chain) for chain in chains.values()] == [SERVING] * 7
