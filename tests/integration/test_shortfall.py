"""What a service lacks is told by `box.instances`, `box.services` and `box.plan`, and by waits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bridge import Operator, ScaleClient, WaitTimeout
from bridge.admin_protocol import Fate
from bridge.bus.embedded_server import EmbeddedServer
from tests.boxes import boxed, serving
from tests.fleet import Fleet
from tests.support import eventually, service_table

FULL = "2 of 5 have no room: 3 of 3 places are taken, 1 more host is cordoned or not ready"
FAILED = (
    r"2 of 2 failed on box-a: exited with code 3; next try in \d+ s; "
    r"`box-bridge logs bad-[0-9a-z]+`"
)


@pytest.mark.slow
async def test_instances_without_room_are_reported_to_queries_and_to_waits(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with Fleet.of(server, tmp_path, "box-a", "box-b", max_instances=3) as fleet:
        before = await fleet.run(5)
        client = ScaleClient(fleet.gateway)
        assert "web" not in (await client.observe("web")).notices
        assert len(before) == 5
        await fleet.operator.drain("box-a", force=True)
        await serving(fleet.gateway, "web", 3)

        async def told() -> bool:
            looks = [await client.observe("web") for _ in range(6)]
            return all(seen.notices.get("web") == FULL for seen in looks)

        await eventually(told, what="both Boxes know that there is no room")
        assert (await client.observe()).notices["web"] == FULL
        [web] = await fleet.operator.services()
        assert (web.wanted, web.ready + web.busy, web.missing) == (5, 3, [FULL])
        seen: list[str] = []
        with pytest.raises(WaitTimeout, match="3 of 5 Ready after 3 s") as late:
            await client.scale(
                "web",
                5,
                wait=True,
                timeout=3,
                progress=lambda found: seen.append(found.notices.get("web", "")),
            )
        assert late.value.lacks == FULL, "a wait goes on, for room may come, and then it says this"
        assert FULL in str(late.value)
        assert len(seen) > 1
        plan = await fleet.operator.plan("web", 5)
        assert [item.fate for item in plan.slots].count(Fate.WAITS) == 2
        await fleet.operator.uncordon("box-a")
        await serving(fleet.gateway, "web", 5)

        async def silent() -> bool:
            return "web" not in (await client.observe("web")).notices

        await eventually(silent)


async def test_a_slot_without_a_living_instance_is_reported_and_planned_as_failing(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    patient = "\n[timing]\nbackoff_first = 60.0\nbackoff_max = 60.0\nheartbeat = 0.5\nlease = 3\n"
    table = service_table("bad", command=["sh", "-c", "exit 3"])
    async with boxed(server, tmp_path, table, timing=patient) as (gateway, _):
        client = ScaleClient(gateway)
        await client.scale("bad", 2)

        async def told() -> bool:
            said = (await client.observe("bad")).notices.get("bad")
            return re.fullmatch(FAILED, said or "") is not None

        await eventually(told)
        assert (await client.observe("bad")).instances == []
        [bad] = await Operator(gateway).services("bad")
        assert (bad.wanted, bad.ready, bad.other) == (2, 0, 0)
        [missing] = bad.missing
        assert re.fullmatch(FAILED, missing)
        plan = await Operator(gateway).plan("bad", 2)
        assert [(item.fate, item.host) for item in plan.slots] == [(Fate.FAILS, "box-a")] * 2
