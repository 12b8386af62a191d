"""Looking after a fleet of several Boxes: cordons, drains, moves, labels, and why things are so."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from bridge import DrainStuck, DrainTimeout, OrderRefused, ScaleClient, ScaleConfig
from bridge.admin_protocol import Entry, Fate, Host
from bridge.box.scheduler import reports
from bridge.box.scheduler.planner import EXCLUSION
from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.errors import NameRefused
from bridge.protocol import InstanceState, encode, now
from bridge.reply_codes import ReplyCode
from tests.boxes import gated, instances, serving
from tests.fleet import Fleet, service_record
from tests.support import TIMING, ask, eventually, service_table

S = InstanceState


async def test_a_drain_replaces_each_instance_elsewhere_before_it_goes(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with Fleet.of(server, tmp_path, "box-a", "box-b") as fleet:
        before = await fleet.run(4)
        assert Counter(before.values()) == {"box-a": 2, "box-b": 2}
        await eventually(lambda: fleet.fewest_registered(len(fleet.recorder.messages) - 1) == 4)
        since = len(fleet.recorder.messages)
        seen: list[tuple[int, int]] = []
        moved = await fleet.operator.drain(
            "box-a", reason="new disk", progress=lambda done, of, _: seen.append((done, of))
        )
        assert moved == 2
        assert seen[-1] == (2, 2)
        await fleet.seen("box-a", lambda host: not host.used)
        await serving(fleet.gateway, "web", 4)
        after = await fleet.placed()
        assert Counter(after.values()) == {"box-b": 4}
        stayed = {name for name, host in before.items() if host == "box-b"}
        assert stayed <= after.keys(), "what need not move has not moved"
        for name in before.keys() - stayed:
            await fleet.recorder.reached(name, "Stopped")
            reasons = [event.message for event in fleet.recorder.of(name)]
            assert "moved: its host is being drained" in reasons
        assert fleet.fewest_registered(since) == 4
        order = (await fleet.host("box-a")).order
        assert order is not None
        assert (order.draining, order.reason) == (True, "new disk")


async def test_a_cordoned_host_gets_nothing_until_it_is_uncordoned(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with Fleet.of(server, tmp_path, "box-a", "box-b") as fleet:
        before = await fleet.run(2)
        await fleet.operator.cordon("box-a", reason="looks odd")
        await fleet.operator.cordon("box-a")  # it is so already
        after = await fleet.run(5)
        assert before.items() <= after.items(), "what a cordoned host has stays"
        assert Counter(after.values()) == {"box-a": 1, "box-b": 4}
        await fleet.operator.cordon("box-a", reason="is slow")
        await fleet.seen("box-a", lambda host: "slow" in (host.order.reason if host.order else ""))
        plan = await fleet.operator.plan("web", 6)
        [why] = [item.why_not for item in plan.hosts if item.name == "box-a"]
        assert why.startswith("cordoned since ")
        assert why.endswith(": is slow")
        await fleet.operator.uncordon("box-a")
        await fleet.operator.uncordon("box-a")
        await fleet.seen("box-a", lambda host: host.order is None)
        final = await fleet.run(6)
        assert Counter(final.values()) == {"box-a": 2, "box-b": 4}


@pytest.mark.slow
async def test_a_host_that_has_not_joined_yet_can_be_cordoned_with_force(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with Fleet.of(server, tmp_path, "box-a") as fleet:
        await fleet.operator.cordon("box-b", reason="to be looked at", force=True)
        await fleet.join("box-b")
        await fleet.seen("box-b", lambda host: host.live and host.order is not None)
        assert set((await fleet.run(3)).values()) == {"box-a"}
        await fleet.operator.uncordon("box-b")
        await fleet.seen("box-b", lambda host: host.order is None)
        assert "box-b" in (await fleet.run(5)).values()


async def test_a_drain_without_room_is_refused_with_the_services_that_have_none(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with Fleet.of(server, tmp_path, "box-a", "box-b", max_instances=3) as fleet:
        before = await fleet.run(5)
        with pytest.raises(
            OrderRefused, match=r"no room for what box-a runs \(\d of web\)"
        ) as refused:
            await fleet.operator.drain("box-a")
        assert refused.value.code == ReplyCode.CAPACITY_EXCEEDED
        assert (await fleet.host("box-a")).order is None
        assert await fleet.placed() == before
        looks: list[Host] = []
        moved = await fleet.operator.drain(
            "box-a", force=True, progress=lambda done, of, host: looks.append(host)
        )
        assert moved == Counter(before.values())["box-a"]
        assert (looks[-1].used, looks[-1].short) == (0, {"web": 2}), "two of five wait for room"
        await fleet.seen("box-a", lambda host: not host.used)
        await serving(fleet.gateway, "web", 3)
        assert set((await fleet.placed()).values()) == {"box-b"}
        # What had nowhere to go is still wanted, and comes once there is room.
        await fleet.operator.uncordon("box-a")
        await serving(fleet.gateway, "web", 5)


@pytest.mark.slow
async def test_a_cancelled_drain_leaves_the_instances_that_were_there(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    door = tmp_path / "door"
    door.touch()
    table = gated(door, "sleep 1000")
    async with Fleet.of(server, tmp_path) as fleet:
        await fleet.join("box-a", table)
        before = await fleet.run(1)
        await fleet.join("box-b", table)
        door.unlink()
        assert await fleet.operator.drain("box-a", wait=False) == 1

        async def extra() -> bool:
            return len(await instances(fleet.gateway, "web")) == 2

        await eventually(extra, what="a replacement comes, which never is Ready")
        with pytest.raises(DrainTimeout, match="still has 1 instance") as caught:
            await fleet.operator.drain("box-a", timeout=1.0)
        assert caught.value.left == 1
        await fleet.operator.uncordon("box-a")

        async def as_before() -> bool:
            return await fleet.placed() == before

        await eventually(as_before, what="the replacement is gone, and nothing else")
        record = await service_record(fleet.gateway)
        assert (len(record.slots), record.rollout) == (1, None)


async def test_labels_steer_where_instances_go(server: EmbeddedServer, tmp_path: Path) -> None:
    needy = service_table("web", needs={"zone": "b"})
    plain = service_table("api")
    async with Fleet.of(server, tmp_path) as fleet:
        for name in ("box-a", "box-b"):
            zone = f'labels = {{ zone = "{name[-1]}" }}'
            await fleet.join(name, needy, plain, more=zone, max_instances=3)
        assert set((await fleet.run(3)).values()) == {"box-b"}
        assert set((await fleet.run(2, "api")).values()) == {"box-a"}
        capped = await ask(fleet.gateway, "web", 4)
        assert (capped.accepted, capped.target_replicas) == (False, 3)
        plan = await fleet.operator.plan("web", 3)
        why = {item.name: item.why_not for item in plan.hosts}
        assert why["box-a"] == "unfit: it needs a host with zone = 'b', not 'a'"
        assert why["box-b"] == "full: 3 of 3"
        with pytest.raises(OrderRefused, match="3 of web"):
            await fleet.operator.drain("box-b")
        found = await fleet.host("box-b")
        assert (found.labels, found.services) == ({"zone": "b"}, {"web": 3})


async def test_nothing_moves_because_a_host_joined_until_a_rebalance_moves_the_fewest(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with Fleet.of(server, tmp_path, "box-a") as fleet:
        before = await fleet.run(5)
        await fleet.join("box-b")
        joined = await fleet.run(6)  # both have planned with both by then
        assert before.items() <= joined.items()
        assert Counter(joined.values()) == {"box-a": 5, "box-b": 1}
        dry = await fleet.operator.rebalance("web", dry_run=True)
        assert [(move.source, move.target) for move in dry.moves] == [("box-a", "box-b")] * 2
        assert await fleet.placed() == joined
        await eventually(lambda: fleet.fewest_registered(len(fleet.recorder.messages) - 1) == 6)
        since = len(fleet.recorder.messages)
        told: list[tuple[int, int]] = []
        done = await fleet.operator.rebalance(
            wait=True, progress=lambda moved, of: told.append((moved, of))
        )
        assert done.moves == dry.moves
        assert told[-1] == (2, 2)
        await serving(fleet.gateway, "web", 6)
        after = await fleet.placed()
        assert Counter(after.values()) == {"box-a": 3, "box-b": 3}
        gone = joined.keys() - after.keys()
        assert gone == {move.instance_id for move in done.moves}
        for name in gone:
            await fleet.recorder.reached(name, "Stopped")
            reasons = [event.message for event in fleet.recorder.of(name)]
            assert "moved: the hosts are being evened out" in reasons
        assert fleet.fewest_registered(since) == 6
        assert (await fleet.operator.rebalance()).moves == []


@pytest.mark.slow
async def test_a_drain_that_keeps_failing_reports_it_and_continues_when_it_is_ordered_again(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    door = tmp_path / "door"
    table = gated(door, "exit 3")
    door.touch()
    async with Fleet.of(server, tmp_path) as fleet:
        await fleet.join("box-a", table)
        await fleet.run(1)
        await fleet.join("box-b", table)
        door.unlink()
        with pytest.raises(DrainStuck, match="stopped after 3 failed") as caught:
            await fleet.operator.drain("box-a")
        assert (caught.value.host, caught.value.left) == ("box-a", 1)
        assert set((await fleet.placed()).values()) == {"box-a"}
        door.touch()
        assert await fleet.operator.drain("box-a") == 1
        await serving(fleet.gateway, "web", 1)
        assert set((await fleet.placed()).values()) == {"box-b"}


@pytest.mark.slow
async def test_a_slot_that_fails_five_times_in_a_row_on_a_host_avoids_it_for_ten_minutes(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    quick = TIMING.replace("backoff_max = 1.0", "backoff_max = 0.2")
    async with Fleet.of(server, tmp_path) as fleet:
        broken = service_table("web", command=["sh", "-c", "exit 3"])
        await fleet.join("box-a", broken, max_instances=10, timing=quick)
        await fleet.join("box-b", max_instances=2, timing=quick)

        def failures() -> int:
            return sum(event.to_state is S.FAILED for _, event in fleet.recorder.events)

        assert set((await fleet.run(1)).values()) == {"box-b"}
        await eventually(lambda: failures() == 5)
        record = await service_record(fleet.gateway)
        [kept] = record.avoid
        assert (kept.slot, kept.host) == (0, "box-a")
        assert now() < kept.until <= now() + EXCLUSION
        await fleet.emptied()
        assert set((await fleet.run(1)).values()) == {"box-b"}, "box-a has more room, but no"
        assert failures() == 5
        await fleet.emptied()
        fleet.ahead = EXCLUSION
        assert set((await fleet.run(1)).values()) == {"box-b"}
        await eventually(lambda: failures() == 10, what="box-a had its chance again")
        fleet.ahead = timedelta()  # or the question would come too late
        notes = [entry.note for entry in (await fleet.operator.history("web")).entries]
        assert notes.count("slot 0 keeps failing on box-a: another host tries") == 2


async def test_history_and_plan_report_each_request_and_why_it_was_capped(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with Fleet.of(server, tmp_path) as fleet:
        for name in ("box-a", "box-b"):
            await fleet.join(name, service_table("web"), service_table("api"), max_instances=2)
        await fleet.run(1, request_id="first")
        ahead = await fleet.operator.plan("web", 9)
        capped = "Capped to 4 instances (max 4 total, 0 used by other services)"
        assert (ahead.before, ahead.target, ahead.accepted, ahead.error) == (1, 4, False, capped)
        assert Counter(item.fate for item in ahead.slots) == {Fate.COMES: 3, Fate.STAYS: 1}
        told = await ask(fleet.gateway, "web", 9, request_id="greedy")
        assert told.error == capped
        await serving(fleet.gateway, "web", 4)
        hosts = (await fleet.placed()).values()
        planned = Counter(item.host for item in ahead.slots)
        assert Counter(hosts) == planned, "what was planned has come"
        down = await fleet.operator.plan("web", 1)
        going = {item.instance_id for item in down.slots if item.fate is Fate.GOES}
        victims = await ask(fleet.gateway, "web", 1)
        drained = {i.id for i in victims.instances if i.state is S.DRAINING}
        assert len(going) == len(drained) == 3  # who is idlest may change between the two
        await ask(fleet.gateway, "api", 0, request_id="another's")
        first, second, third = (await fleet.operator.history("web")).entries
        assert (first.request_id, first.before, first.after, first.note) == ("first", 0, 1, "")
        assert first.at is not None
        assert first.host in ("box-a", "box-b")
        assert (second.request_id, second.replicas, second.after) == ("greedy", 9, 4)
        assert (second.note, second.added) == (capped, [1, 2, 3])
        assert (third.before, third.after, len(third.removed)) == (4, 1, 3)
        await fleet.held(1)
        config = ScaleConfig(env={"LEVEL": "debug"})
        await ScaleClient(fleet.gateway).scale("web", 1, config=config, wait=True)
        steps = (await fleet.operator.history("web")).entries[3:]
        assert steps[0].reconfigured
        assert [step.note for step in steps[1:]] == [
            "rollout: a replacement comes for a new config",
            "rollout: an outdated instance goes for a new config",
            "rollout done",
        ]
        assert [step.replicas for step in steps] == [1, None, None, None]


async def test_history_keeps_requests_over_many_steps(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with Fleet.of(server, tmp_path, "box-a") as fleet:
        await fleet.run(1, request_id="night-shift")
        await ask(fleet.gateway, "web", 0, request_id="day-shift")
        await fleet.held(0)
        record = await service_record(fleet.gateway)
        assert record.decision is not None
        for _ in range(64):  # which is what the store keeps of a service
            step = replace(record.decision, request_id="", error="rollout: a step", step=True)
            record = replace(record, version=record.version + 1, decision=step)
            await fleet.gateway.request("$KV.box_services.web", encode(record))

        async def told() -> list[Entry] | None:
            entries = (await fleet.operator.history("web")).entries
            return entries if entries[-1].version == record.version else None

        first, second, *steps = await eventually(told)
        assert (first.request_id, first.before, first.after) == ("night-shift", 0, 1)
        assert (second.request_id, second.before, second.after) == ("day-shift", 1, 0)
        assert [entry.version for entry in steps] == list(range(3, record.version + 1))


async def test_what_cannot_be_done_is_refused_with_what_to_do(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with Fleet.of(server, tmp_path, "box-a") as fleet:
        operator = fleet.operator
        for order in (operator.cordon, operator.drain, operator.uncordon):
            with pytest.raises(
                OrderRefused, match="unknown host 'box-x': known are box-a"
            ) as refused:
                await order("box-x")
            assert refused.value.code == ReplyCode.UNKNOWN_HOST
        with pytest.raises(NameRefused):
            await operator.cordon("*")
        for question in (operator.history, operator.rebalance):
            with pytest.raises(OrderRefused, match="'nope' was never scaled") as refused:
                await question("nope")
            assert refused.value.code == ReplyCode.UNKNOWN_SERVICE
        plan = await operator.plan("nope", 1)
        assert "unknown service" in str(plan.error)
        assert await operator.hosts("box-x") == []
        assert await operator.services("nope") == []


SUBJECTS = ["box.hosts", "box.services", "box.admin", "box.history", "box.plan"]


@pytest.mark.parametrize("subject", SUBJECTS)
async def test_what_cannot_be_read_or_comes_too_late_is_refused(
    server: EmbeddedServer, tmp_path: Path, subject: str
) -> None:
    async with Fleet.of(server, tmp_path, "box-a") as fleet:
        wrong = [b"not JSON", b"[]", b'{"verb":"explode","limit":-1}']
        for body in wrong:
            message = await fleet.gateway.request(subject, body)
            assert json.loads(message.data)["error"], message.data
            assert message.headers["Box-Code"] == ReplyCode.INVALID_REQUEST
        past = {"Box-Expires-At": "2020-01-01T00:00:00Z"}
        body = b'{"verb":"cordon","host":"box-a","service":"web","replicas":1}'
        message = await fleet.gateway.request(subject, body, headers=past)
        late = json.loads(message.data)
        assert late["error"].startswith("request: expired at 2020-01-01T00:00:00Z")
        assert message.headers["Box-Code"] == ReplyCode.EXPIRED
        bad = {"Box-Expires-At": "tomorrow"}
        unclear = json.loads((await fleet.gateway.request(subject, body, headers=bad)).data)
        assert "Box-Expires-At" in unclear["error"]
        assert (await fleet.host("box-a")).order is None


async def test_a_box_that_is_cut_off_from_the_others_state_answers_no_operator(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with Fleet.of(server, tmp_path) as fleet:
        box = await fleet.join("box-a")
        assert box._components is not None
        box._components.fleet.view.orders.lost()  # as in a resync
        for subject in ("box.hosts", "box.instances"):
            message = await fleet.gateway.request(subject, b"")
            assert json.loads(message.data)["error"].startswith("not ready: ")
            assert message.headers["Box-Code"] == ReplyCode.NOT_READY


async def test_the_loop_has_its_turn_between_answers_that_take_long(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Fleet.of(server, tmp_path, "box-a") as fleet:
        await fleet.run(1)
        loop, turn, answered, tell = asyncio.get_running_loop(), 0, list[int](), reports.hosts
        ticking: asyncio.Handle

        def go_on() -> None:
            nonlocal turn, ticking
            turn += 1
            ticking = loop.call_soon(go_on)

        def hosts(*args: Any, **named: Any) -> list[Host]:
            answered.append(turn)
            return tell(*args, **named)

        monkeypatch.setattr(reports, "hosts", hosts)
        ticking = loop.call_soon(go_on)
        await asyncio.gather(*(fleet.operator.hosts() for _ in range(10)))
        ticking.cancel()
        assert len(set(answered)) == len(answered) >= 10


async def test_replies_larger_than_max_payload_are_cut_and_say_so(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Fleet.of(server, tmp_path, "box-a", "box-b") as fleet:
        for count in (1, 2, 3, 4, 3, 4, 3, 4):
            await ask(fleet.gateway, "web", count)
        whole = await fleet.operator.history("web")
        assert len(whole.entries) == 8
        await serving(fleet.gateway, "web", 4)
        await fleet.held(4)
        monkeypatch.setattr(Connection, "max_payload", property(lambda self: 1800))
        assert [host.name for host in await fleet.operator.hosts()] == ["box-a", "box-b"]
        [web] = await fleet.operator.services()
        assert (web.name, web.wanted, web.missing) == ("web", 4, [])
        cut = await fleet.operator.history("web")
        assert 0 < len(cut.entries) < 8
        assert (cut.entries, cut.omitted) == (whole.entries[cut.omitted :], 8 - len(cut.entries))
        plan = await fleet.operator.plan("web", 20)
        assert len(plan.hosts) == 2
        assert len(plan.slots) + plan.omitted == 20
        assert plan.omitted


@pytest.mark.slow
async def test_two_drains_at_once_do_not_count_on_the_same_room(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    names = ("box-a", "box-b", "box-c")
    async with Fleet.of(server, tmp_path, *names, max_instances=2) as fleet:
        await fleet.run(3)  # one each: any one host can be emptied, or even two of them in turn
        await fleet.operator.cordon("box-c")  # and now one of the others, but not both

        async def drained(name: str) -> bool:
            try:
                await fleet.operator.drain(name, wait=False)
            except OrderRefused:
                return False
            return True

        given = await asyncio.gather(*map(drained, ("box-a", "box-b")))
        assert sorted(given) == [False, True]
