"""What a fleet survives of its hosts: one that dies, one that freezes, one that comes back."""

from __future__ import annotations

import signal
import sys
from collections import Counter
from pathlib import Path

import pytest

from bridge.admin_protocol import Fate
from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.gateway.client import ScaleClient
from bridge.gateway.errors import ScaleError
from bridge.gateway.operator import Operator
from bridge.protocol import (
    InstanceDeregistration,
    InstanceState,
    decode,
)
from tests.boxes import serving
from tests.faults.history import History
from tests.faults.hosts import fleet, placed, settled
from tests.faults.killable import Killable, scaled
from tests.fleet import service_record
from tests.support import Recorder, eventually, service_table

S = InstanceState
HOSTS = ("box-a", "box-b", "box-c", "box-d", "box-e")
LEASE = 3  # seconds, as the tests have it


@pytest.mark.slow
async def test_the_slots_of_a_killed_host_run_elsewhere_and_nothing_runs_twice_when_it_returns(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with fleet(server.url, tmp_path, HOSTS) as (gateway, boxes):
        recorder = await Recorder.listening(gateway)
        await scaled(gateway, 20)
        await settled(gateway, boxes, 20)
        before = await placed(gateway)
        assert Counter(before.values()) == dict.fromkeys(HOSTS, 4), "spread over the hosts"
        victim = boxes["box-c"]
        lost = {name for name, host in before.items() if host == "box-c"}
        await victim.kill()

        async def elsewhere() -> bool:
            seen = await ScaleClient(gateway).observe("web")
            serve = [info for info in seen.instances if info.state in (S.READY, S.BUSY)]
            return len(serve) == 20 and "box-c" not in seen.hosts.values()

        await eventually(elsewhere, what="its slots are served elsewhere")
        after = await placed(gateway)
        assert {name: after[name] for name in before.keys() - lost} == {
            name: host for name, host in before.items() if name not in lost
        }, "nothing else moved"
        await eventually(lambda: lost <= _withdrawn(recorder).keys())
        withdrawn = _withdrawn(recorder)
        assert {name: withdrawn[name] for name in lost} == dict.fromkeys(lost, "host box-c lost")
        victim.start()
        there = await settled(gateway, boxes, 20)
        assert not lost & {info.id for info in there}
        history = await History.settled(gateway, there)
        history.check()
        for name in lost:
            assert history.states()[name][-1] is S.STOPPED
            assert any("taken by" in event.message for _, event in history.events[name])


@pytest.mark.slow
async def test_the_lack_of_room_for_the_slots_of_a_dead_host_is_reported(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with fleet(server.url, tmp_path, HOSTS[:2], max_instances=2) as (gateway, boxes):
        await scaled(gateway, 4)
        await settled(gateway, boxes, 4)
        await boxes["box-b"].kill()
        client, operator = ScaleClient(gateway), Operator(gateway)
        said = "2 of 4 have no room: 2 of 2 places are taken; 2 are on box-b, which is dead"

        async def told() -> bool:
            try:
                return (await client.observe("web")).notices.get("web") == said
            except ScaleError:
                return False  # box-a is not ready

        await eventually(told, within=8 * LEASE, what="half of the fleet is dead for good")
        assert Counter((await placed(gateway)).values()) == {"box-a": 2, "box-b": 2}, (
            "as the wire has it"
        )
        [dead] = await operator.hosts("box-b")
        assert (dead.live, dead.used, dead.short) == (False, 2, {"web": 2})
        [web] = await operator.services("web")
        assert (web.wanted, web.ready, web.other) == (4, 2, 2)
        plan = await operator.plan("web", 4)
        assert Counter(item.fate for item in plan.slots) == {Fate.WAITS: 2, Fate.STAYS: 2}
        assert {item.name: item.why_not for item in plan.hosts} == {
            "box-a": "full: 2 of 2",
            "box-b": "dead, and still holds 2 of it",
        }


def _withdrawn(recorder: Recorder) -> dict[str, str]:
    """The reason of each deregistration."""
    told = [
        decode(InstanceDeregistration, message.data)
        for message in recorder.messages
        if message.subject.startswith("box.deregister.")
    ]
    return {one.instance_id: one.reason for one in told}


@pytest.mark.slow
async def test_a_host_frozen_beyond_its_lease_ends_the_instances_that_were_taken_over(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with fleet(server.url, tmp_path, HOSTS[:3]) as (gateway, boxes):
        await scaled(gateway, 6)
        before = await placed_when_serving(gateway, 6)
        boxes["box-b"].process.send_signal(signal.SIGSTOP)
        try:

            async def elsewhere() -> bool:
                now = await placed(gateway)
                return len(now) == 6 and "box-b" not in now.values()

            # One of the others that stalls as well makes it half of the fleet: one lease more.
            await eventually(elsewhere, what="its slots run elsewhere")
        finally:
            boxes["box-b"].process.send_signal(signal.SIGCONT)
        there = await settled(gateway, boxes, 6)
        history = await History.settled(gateway, there)
        history.check()
        kept = {name for name, host in before.items() if host != "box-b"}
        assert kept <= {info.id for info in there}


@pytest.mark.slow
async def test_a_lease_expires_in_time_although_the_clock_is_set_back(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    program = ("tests.faults.wrong_clock",)
    async with fleet(server.url, tmp_path, HOSTS[:2], program=program) as (gateway, boxes):
        await scaled(gateway, 4)
        assert Counter((await placed_when_serving(gateway, 4)).values()) == dict.fromkeys(
            HOSTS[:2], 2
        )
        await boxes["box-b"].kill()
        order = tmp_path / "box-a.clock"
        order.touch()

        async def elsewhere() -> bool:
            return Counter((await placed(gateway)).values()) == {"box-a": 4}

        await eventually(elsewhere, what="its slots run elsewhere")
        await serving(gateway, "web", 4)
        assert not order.exists(), "the clock was set back"


async def placed_when_serving(gateway: Connection, count: int) -> dict[str, str]:
    await serving(gateway, "web", count)
    return await placed(gateway)


@pytest.mark.slow
async def test_a_host_that_dies_during_its_drain_leaves_no_surplus_instance(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    door = tmp_path / "door"
    door.touch()
    waits = f"while ! test -e {door}; do sleep 0.1; done"
    serves = f'exec {sys.executable} -m http.server --bind 127.0.0.1 "$PORT"'
    web = service_table("web", command=["sh", "-c", f"{waits}; {serves}"])
    async with fleet(server.url, tmp_path, HOSTS[:3], web) as (gateway, boxes):
        await scaled(gateway, 3)
        await serving(gateway, "web", 3)
        door.unlink()
        operator = Operator(gateway)
        await operator.drain("box-a", wait=False)
        await eventually(lambda: _count(gateway, 4), what="a replacement is being made")
        await boxes["box-a"].kill()

        async def dead() -> bool:
            return not (await operator.hosts("box-a"))[0].live

        await eventually(dead, what="the host is seen to be dead")
        door.touch()
        there = await settled(gateway, boxes_but(boxes, "box-a"), 3)

        async def without_it() -> bool:
            return "box-a" not in (await placed(gateway)).values()

        await eventually(without_it, what="no Box counts what was on the dead host")
        record = await service_record(gateway)
        assert (len(record.slots), record.target) == (3, 3)
        boxes["box-a"].start()
        await settled(gateway, boxes, 3)

        async def empty() -> bool:
            return (await operator.hosts("box-a"))[0].used == 0

        await eventually(empty, what="what was claimed there is given up")
        assert {info.id for info in there} == set(await placed(gateway)), "it stays away"


async def _count(gateway: Connection, count: int) -> bool:
    return len(await placed(gateway)) == count


def boxes_but(boxes: dict[str, Killable], name: str) -> dict[str, Killable]:
    return {other: box for other, box in boxes.items() if other != name}
