"""A Box on one host: ask for replicas, and see them come, serve and go."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from bridge.bus.embedded_server import EmbeddedServer
from bridge.protocol import InstanceState, ScaleRequest, decode
from tests.boxes import alive, boxed, fetch, gone, instances, labelled, serving
from tests.support import ask, eventually, service_table

S = InstanceState

# ── up and down ───────────────────────────────────────────────────────────────────────────────


async def test_scale_answers_at_once_and_the_instances_follow(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path) as (gateway, recorder):
        answer = await ask(gateway, "web", 3, request_id="r-1")
        assert (answer.accepted, answer.current_replicas, answer.target_replicas) == (True, 0, 3)
        assert (answer.request_id, answer.error) == ("r-1", None)
        found = await serving(gateway, "web", 3)
        for info in found:
            assert await recorder.reached(info.id, "Ready") == ["Booting", "Ready"]
            assert (await fetch(info))["instance"] == info.id  # which may make it Busy
            assert info.ready_at is not None
            assert info.created_at < info.ready_at
        assert found == sorted(found, key=lambda info: info.created_at)


async def test_a_request_is_decoded_once_whether_or_not_it_changes_something(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[object] = []

    def counted(cls: type[object], data: bytes) -> object:
        decoded.append(cls)
        return decode(cls, data)

    monkeypatch.setattr("bridge.box.api.scale.decode", counted)
    async with boxed(server, tmp_path) as (gateway, _):
        assert (await ask(gateway, "web", 1)).accepted  # a new target
        assert decoded == [ScaleRequest]
        assert (await ask(gateway, "web", 1)).accepted  # the same one
        assert decoded == [ScaleRequest, ScaleRequest]


async def test_scaling_down_ends_surplus_instances_with_all_their_processes(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path) as (gateway, recorder):
        await ask(gateway, "web", 3)
        before = await serving(gateway, "web", 3)
        pids = {info.id: (await fetch(info))["pid"] for info in before}
        answer = await ask(gateway, "web", 1)
        going = [info.id for info in answer.instances if info.state is S.DRAINING]
        assert len(going) == 2
        [left] = await serving(gateway, "web", 1)
        assert left.id not in going
        for instance_id in going:
            states = await recorder.reached(instance_id, "Stopped")
            assert states[2:] == ["Draining", "Stopping", "Stopped"]
            await gone(pids[instance_id])
        assert alive(pids[left.id])


async def test_a_request_in_flight_is_finished_before_its_instance_ends(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path) as (gateway, recorder):
        await ask(gateway, "web", 1)
        [info] = await serving(gateway, "web", 1)
        gate = tmp_path / "gate"
        slow = asyncio.ensure_future(fetch(info, f"/until?{gate}"))
        await eventually(lambda: "Busy" in recorder.states(info.id))
        await ask(gateway, "web", 0)
        await recorder.reached(info.id, "Draining")
        gate.touch()
        assert (await slow)["instance"] == info.id
        await serving(gateway, "web", 0)
        await recorder.reached(info.id, "Stopped")
        tail = recorder.of(info.id)[-3:]
        assert [event.to_state for event in tail] == [S.DRAINING, S.STOPPING, S.STOPPED]
        assert tail[1].timestamp > tail[0].timestamp
        assert not tail[1].message


async def test_a_drain_ends_at_its_timeout_and_says_so(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    table = service_table("web", drain_timeout=0.3)
    async with boxed(server, tmp_path, table) as (gateway, recorder):
        await ask(gateway, "web", 1)
        [info] = await serving(gateway, "web", 1)
        slow = asyncio.ensure_future(fetch(info, f"/until?{tmp_path}/never"))
        await eventually(lambda: "Busy" in recorder.states(info.id))
        await ask(gateway, "web", 0)
        with pytest.raises(ConnectionError):
            await slow
        await serving(gateway, "web", 0)
        await recorder.reached(info.id, "Stopped")
        messages = [event.message for event in recorder.of(info.id)]
        assert "requests still in flight after 0.3 s" in messages


async def test_an_instance_that_ignores_sigterm_is_killed_after_its_grace(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    table = service_table("web", "ignore-term", stop_grace=0.3)
    async with boxed(server, tmp_path, table) as (gateway, recorder):
        await ask(gateway, "web", 1)
        [info] = await serving(gateway, "web", 1)
        await ask(gateway, "web", 0)
        await serving(gateway, "web", 0)
        await recorder.reached(info.id, "Stopped")
        last = recorder.of(info.id)[-1]
        assert last.to_state is S.STOPPED
        assert last.message == "killed: it did not end within 0.3 s"


async def test_an_instance_can_be_scaled_down_while_it_boots(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path, service_table("web", "never-listen")) as (
        gateway,
        recorder,
    ):
        await ask(gateway, "web", 1)
        [event] = await eventually(lambda: [event for _, event in recorder.events])
        await ask(gateway, "web", 0)
        states = await recorder.reached(event.instance_id, "Stopped")
        assert states == ["Booting", "Stopping", "Stopped"]
        assert recorder.of(event.instance_id)[1].message == "scaled down"


async def test_busy_follows_the_requests_and_probes_do_not_count(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    table = service_table("web", probe={"http": "/", "interval": 0.02})
    async with boxed(server, tmp_path, table) as (gateway, recorder):
        await ask(gateway, "web", 1)
        [info] = await serving(gateway, "web", 1)
        gate = tmp_path / "gate"
        slow = [asyncio.ensure_future(fetch(info, f"/until?{gate}")) for _ in range(3)]

        async def all_counted() -> bool:
            return (await instances(gateway))[0].health.inflight_requests == 3

        await eventually(all_counted, what="three requests are in flight")
        assert (await instances(gateway))[0].state is S.BUSY
        gate.touch()
        await asyncio.gather(*slow)
        await eventually(lambda: len(recorder.states(info.id)) >= 4)
        states = recorder.states(info.id)
        assert states == ["Booting", "Ready", "Busy", "Ready"]  # 50 probes a second, no flicker


async def test_loads_are_published_once_a_sample(server: EmbeddedServer, tmp_path: Path) -> None:
    async with boxed(server, tmp_path) as (gateway, _):
        stats: list[Any] = []
        await gateway.listen("box.stats.box-a", lambda m: stats.append(json.loads(m.data)))
        await ask(gateway, "web", 1)
        [info] = await serving(gateway, "web", 1)
        report = await eventually(lambda: next((s for s in stats if info.id in s), None))
        assert report[info.id]["memory_bytes"] > 1024 * 1024
        assert report[info.id]["cpu_percent"] >= 0
        assert report[info.id]["healthy"] is True


# ── capacity and ids ──────────────────────────────────────────────────────────────────────────


async def test_capacity_is_shared_between_services(server: EmbeddedServer, tmp_path: Path) -> None:
    tables = service_table("web"), service_table("api")
    async with boxed(server, tmp_path, *tables, max_instances=3) as (gateway, _):
        await ask(gateway, "web", 2)
        capped = await ask(gateway, "api", 5)
        assert not capped.accepted
        assert capped.target_replicas == 1
        assert capped.error == "Capped to 1 instances (max 3 total, 2 used by other services)"
        await serving(gateway, "web", 2)
        await serving(gateway, "api", 1)


async def test_one_request_id_has_one_effect(server: EmbeddedServer, tmp_path: Path) -> None:
    async with boxed(server, tmp_path) as (gateway, _):
        first = await ask(gateway, "web", 2, request_id="r")
        await ask(gateway, "web", 1, request_id="other")
        again = await ask(gateway, "web", 2, request_id="r")
        assert (again.accepted, again.target_replicas) == (True, 2)
        assert again.current_replicas == first.current_replicas
        await serving(gateway, "web", 1)
        another = await ask(gateway, "web", 3, request_id="r")
        assert not another.accepted
        assert "another request" in str(another.error)
        await serving(gateway, "web", 1)


@pytest.mark.slow
async def test_two_hundred_requests_at_once_are_all_answered_and_one_target_holds(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path) as (gateway, _):
        answers = await asyncio.gather(
            *(
                ask(gateway, "web", number % 4, request_id=f"r{number}", timeout=30)
                for number in range(200)
            )
        )
        assert all(answer.accepted for answer in answers)
        assert [answer.request_id for answer in answers] == [f"r{n}" for n in range(200)]
        final = await ask(gateway, "web", 2)
        assert final.accepted
        await serving(gateway, "web", 2)


async def test_a_dry_run_reports_the_outcome_and_changes_nothing(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path) as (gateway, recorder):
        answer = await ask(gateway, "web", 4, headers={"Box-Dry-Run": "true"})
        assert (answer.accepted, answer.target_replicas) == (True, 4)
        assert (await ask(gateway, "web", 0)).target_replicas == 0
        assert recorder.events == []


# ── stopping and starting ─────────────────────────────────────────────────────────────────────


async def test_a_stopped_box_drains_and_its_restart_restores_the_target(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path) as (gateway, recorder):
        await ask(gateway, "web", 2)
        found = await serving(gateway, "web", 2)
        pids = [(await fetch(info))["pid"] for info in found]
    assert not any(alive(pid) for pid in pids)
    for info in found:
        assert recorder.states(info.id)[-3:] == ["Draining", "Stopping", "Stopped"]
        assert recorder.of(info.id)[-3].message == "its Box is stopping"
    async with boxed(server, tmp_path) as (gateway, _):
        again = await serving(gateway, "web", 2)
        assert not {info.id for info in again} & {info.id for info in found}


async def test_processes_that_leave_their_group_are_found_and_ended(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path, service_table("web", "daemonize")) as (gateway, _):
        await ask(gateway, "web", 1)
        [info] = await serving(gateway, "web", 1)
        label = str(Path((await fetch(info, "/env"))["BOX_INSTANCE_DIR"]).parent)
        # The shim, what it runs, and what ran away; who has made that ends a moment later.
        await eventually(lambda: len(labelled(label)) == 3)
        await ask(gateway, "web", 0)
        await serving(gateway, "web", 0)
        await eventually(lambda: not labelled(label))
