"""The fleet told to people: what is there, what was decided, and what a request would do."""

from __future__ import annotations

from msgspec.structs import replace

from bridge.admin_protocol import Fate, Order
from bridge.box.api.admin import _shortened
from bridge.box.scheduler import reports
from bridge.box.scheduler.planner import EXCLUSION
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.records import (
    Avoidance,
    Decision,
    HostOrder,
    Offer,
    Request,
    Rollout,
    ServiceRecord,
)
from bridge.protocol import InstanceState, ScaleConfig
from tests.support import calls
from tests.unit.fleets import AT, admission_request, fleet, host, planned, slot


def state() -> FleetState:
    claims = {0: slot("web", 0), 1: slot("web", 1, on="box-dead")}
    return fleet(
        hosts={"box-a": host("web"), "box-b": host("web", "api")},
        services={"web": ServiceRecord(target=2, slots=[0, 1])},
        slots={"web": claims},
    )


def test_hosts_that_are_dead_are_named_while_they_hold_slots_or_an_order() -> None:
    found = replace(state(), orders={"box-old": HostOrder(reason="sold")})
    assert reports.names(found) == ["box-a", "box-b", "box-dead", "box-old"]
    told = {one.name: one for one in reports.hosts(found, reports.names(found), at=AT)}
    assert [told[name].live for name in sorted(told)] == [True, True, False, False]
    assert (told["box-dead"].used, told["box-dead"].services) == (1, {"web": 1})
    assert told["box-old"].order == Order(reason="sold")
    assert (told["box-b"].used, told["box-b"].offers) == (0, ["api", "web"])


def test_a_host_with_an_unreadable_record_is_live_and_takes_no_slots() -> None:
    found = replace(state(), unreadable_hosts={"box-dead", "box-new"})
    assert reports.names(found) == ["box-a", "box-b", "box-dead", "box-new"]
    for told in reports.hosts(found, ["box-dead", "box-new"], at=AT):
        assert (told.live, told.ready) == (True, False)
        assert told.notices[0].startswith("its record cannot be read")
    assert reports.hosts(found, ["box-dead"], at=AT)[0].services == {"web": 1}


def test_a_draining_host_reports_why_its_drain_is_stuck() -> None:
    stopped = Rollout(config="c", stopped="rollout stopped: no database")
    record = ServiceRecord(target=1, slots=[0], rollout=stopped)
    draining = replace(
        fleet(services={"web": record}, slots={"web": {0: slot("web", 0)}}),
        orders={"box-a": HostOrder(draining=True)},
    )
    [told] = reports.hosts(draining, ["box-a"], at=AT)
    assert told.stuck == {"web": "rollout stopped: no database"}
    assert told.short == {"web": 1}
    [calm] = reports.hosts(replace(draining, orders={}), ["box-a"], at=AT)
    assert (calm.stuck, calm.short) == ({}, {})


def test_hosts_that_are_being_drained_share_one_forecast() -> None:
    names = [f"box-{number:03}" for number in range(60)]
    services = [f"s{number}" for number in range(20)]
    claims = {name: {n: slot(name, n, on=names[n]) for n in range(30)} for name in services}
    record = ServiceRecord(target=30, slots=list(range(30)))
    found = fleet(
        hosts={name: host(*services, room=40) for name in names},
        services=dict.fromkeys(services, record),
        slots=claims,
    )

    def drained(count: int) -> FleetState:
        return replace(found, orders=dict.fromkeys(names[:count], HostOrder(draining=True)))

    few, many = (
        calls(lambda: reports.hosts(drained(count), names, at=AT))  # noqa: B023
        for count in (2, 20)
    )
    assert many < 2 * few


def test_a_dead_host_reports_how_many_of_its_slots_have_no_room_elsewhere() -> None:
    claims = {number: slot("web", number, on="box-dead") for number in range(3)}
    lost = replace(
        fleet(
            hosts={"box-a": host("web", room=1)},
            services={"web": ServiceRecord(target=3, slots=[0, 1, 2])},
            slots={"web": claims},
        ),
        dead={"box-dead"},
    )
    alive, dead = reports.hosts(lost, ["box-a", "box-dead"], at=AT)
    assert (alive.short, dead.short) == ({}, {"web": 2})
    drained = replace(lost, orders={"box-dead": HostOrder(draining=True)})
    [dead] = reports.hosts(drained, ["box-dead"], at=AT)
    assert dead.short == {"web": 2}


def test_services_are_reported_with_serving_and_missing_instances() -> None:
    old = ServiceRecord(target=2, slots=[0, 1], rollout=Rollout(config="c", stopped="why"))
    claims = {
        0: slot("web", 0),
        1: slot("web", 1, InstanceState.BUSY),
        2: slot("web", 2, InstanceState.DRAINING),
        3: slot("web", 3, on="box-dead"),
        4: slot("web", 4, InstanceState.FAILED),
    }
    there = fleet(
        hosts={"box-a": host("web", "jobs")},
        services={"web": ServiceRecord(target=5, slots=[0, 1, 3, 4, 5]), "api": old},
        slots={"web": claims, "api": {0: slot("api", 0, config="old")}, "gone": {}},
    )
    assert reports.service_names(there) == ["api", "jobs", "web"]
    api, jobs, web = reports.services(there, reports.service_names(there), at=AT)
    assert (api.ready, api.replacing, api.stopped) == (1, 1, "why")
    assert api.missing == ["1 of 2 has no room: no live host can run it"]
    assert (jobs.wanted, jobs.ready, jobs.missing) == (0, 0, [])
    assert (web.wanted, web.ready, web.busy, web.other) == (5, 1, 1, 2)
    assert web.missing == [
        "1 of 5 failed on box-a; `box-bridge logs web-4-box-a`",
        "1 is on box-dead, which is dead",
    ]


def test_a_page_of_large_services_ends_early_and_has_one_at_least() -> None:
    claims = {number: slot("web", number) for number in range(20_001)}
    there = fleet(slots={"web": claims, "api": {0: slot("api", 0)}})
    assert [item.name for item in reports.services(there, ["web", "api"], at=AT)] == ["web"]
    assert [item.name for item in reports.services(there, ["api", "web"], at=AT)] == ["api", "web"]


def test_a_host_emptied_by_force_reports_the_slots_that_wait_for_room() -> None:
    full = {"box-a": host("web", room=3), "box-b": host("web", "jobs", room=1)}
    there = fleet(
        hosts=full,
        services={
            "web": ServiceRecord(target=3, slots=[0, 1, 2]),
            "jobs": ServiceRecord(target=2, slots=[0, 1]),
        },
        slots={"web": {0: slot("web", 0, on="box-b")}},
    )
    for order, short in (
        (HostOrder(draining=True, forced=True), {"web": 2}),
        (HostOrder(draining=True), {}),
        (HostOrder(), {}),
    ):
        [told] = reports.hosts(replace(there, orders={"box-a": order}), ["box-a"], at=AT)
        assert (told.used, told.short) == (0, short)


def test_history_shows_the_steps_between_records() -> None:
    first = ServiceRecord(version=1, target=1, slots=[0])
    decision = Decision(at=AT, host="box-b", replicas=3, request_id="r", error="Capped to 2")
    second = ServiceRecord(version=2, target=2, slots=[0, 1], decision=decision)
    config = ScaleConfig(env={"A": "1"})
    third = replace(second, version=3, target=1, slots=[1], config=config, decision=None)
    one, two, three = reports.history([first, second, third])
    assert (one.before, one.after, one.added) == (0, 1, [0])
    assert (two.before, two.after, two.replicas, two.note) == (1, 2, 3, "Capped to 2")
    assert (two.at, two.host, two.request_id, two.added) == (AT, "box-b", "r", [1])
    assert (three.before, three.removed, three.reconfigured) == (2, [0], True)
    assert reports.history([]) == []
    assert reports.history([second])[0].before is None, "the store has forgotten"


def test_history_shows_the_requests_that_the_store_has_dropped_each_once() -> None:
    def request(version: int, before: int, after: int) -> Request:
        decision = Decision(
            at=AT, host="box-b", replicas=9, request_id=f"r{version}", error="Capped"
        )
        return Request(version=version, before=before, after=after, decision=decision)

    known = [request(3, 0, 1), request(7, 1, 2), request(9, 2, 3)]
    step = Decision(at=AT, host="box-a", replicas=2, error="rollout: one goes", step=True)
    records = [
        ServiceRecord(version=7, target=2, slots=[0, 1], decision=known[1].decision),
        ServiceRecord(version=8, target=2, slots=[0, 2], decision=step),
        ServiceRecord(version=9, target=3, slots=[0, 1, 2], decision=known[2].decision),
    ]
    told = reports.history([*records[:2], replace(records[2], requests=known)])
    assert [entry.version for entry in told] == [3, 7, 8, 9]
    forgotten = told[0]
    assert (forgotten.before, forgotten.after, forgotten.replicas) == (0, 1, 9)
    assert (forgotten.request_id, forgotten.host, forgotten.note) == ("r3", "box-b", "Capped")
    assert [entry.replicas for entry in told] == [9, 9, None, 9], "nobody asked for a step"


def test_a_plan_has_the_fate_of_each_slot() -> None:
    claims = {0: slot("web", 0), 1: slot("web", 1, age=5), 2: slot("web", 2, InstanceState.BUSY)}
    record = ServiceRecord(target=3, slots=[0, 1, 2])
    full = {"box-a": host("web", room=3), "box-b": host("web", room=1)}
    there = fleet(hosts=full, services={"web": record}, slots={"web": claims})
    up = planned(admission_request(replicas=4), there)
    assert [(item.slot, item.fate, item.host) for item in up.slots] == [
        (3, Fate.COMES, "box-b"),
        (0, Fate.STAYS, "box-a"),
        (1, Fate.STAYS, "box-a"),
        (2, Fate.STAYS, "box-a"),
    ]
    down = planned(admission_request(replicas=2), there)
    assert [(item.slot, item.fate) for item in down.slots][:1] == [(0, Fate.GOES)]  # the youngest
    lost = replace(there, hosts={"box-a": full["box-a"]}, slots={"web": {0: claims[0]}})
    waits = planned(admission_request(replicas=3), replace(lost, used={"box-a": 3}))
    assert [item.fate for item in waits.slots] == [Fate.WAITS, Fate.WAITS, Fate.STAYS]
    drained = replace(there, orders={"box-a": HostOrder(draining=True)})
    moving = planned(admission_request(replicas=3), drained)
    assert {item.fate for item in moving.slots} == {Fate.MOVES}


def test_a_plan_shows_slots_without_a_living_instance_and_dead_hosts_with_slots() -> None:
    claims = {
        0: slot("web", 0),
        1: slot("web", 1, InstanceState.FAILED),
        2: slot("web", 2, on="box-b"),
        3: slot("web", 3, on="box-c"),
    }
    record = ServiceRecord(target=4, slots=[0, 1, 2, 3])
    there = replace(fleet(services={"web": record}, slots={"web": claims}), dead={"box-c"})
    plan = planned(admission_request(replicas=4), there)
    assert [(item.slot, item.fate, item.host, item.instance_id) for item in plan.slots] == [
        (3, Fate.COMES, "box-a", ""),
        (1, Fate.FAILS, "box-a", ""),
        (0, Fate.STAYS, "box-a", "web-0-box-a"),
        (2, Fate.STAYS, "box-b", "web-2-box-b"),
    ]
    assert {item.name: item.why_not for item in plan.hosts} == {
        "box-a": "",
        "box-b": "dead, and still holds 1 of it",
        "box-c": "dead, and still holds 1 of it",
    }
    newer = planned(admission_request(replicas=4), replace(there, unreadable_hosts={"box-b"}))
    assert newer.hosts[1].why_not.startswith("its record cannot be read")


def test_a_plan_has_the_reason_why_no_outdated_instance_is_replaced() -> None:
    record = ServiceRecord(target=2, slots=[0, 1])
    outdated = {0: slot("web", 0, config="old"), 1: slot("web", 1, config="old")}
    there = fleet(services={"web": record}, slots={"web": outdated})
    moving = planned(admission_request(replicas=2), there)
    assert ({item.fate for item in moving.slots}, moving.stuck) == ({Fate.MOVES}, "")
    stopped = replace(record, rollout=Rollout(config=record.config_id, stopped="stopped: why"))
    held = replace(there, services={"web": stopped})
    assert planned(admission_request(replicas=2), held).stuck == "stopped: why"
    cordoned = replace(there, orders={"box-a": HostOrder()})
    stuck = planned(admission_request(replicas=2), cordoned)
    assert {item.fate for item in stuck.slots} == {Fate.MOVES}
    assert stuck.stuck.startswith("no host has room for a replacement")
    coming = {"web": {**outdated, 2: slot("web", 2, InstanceState.BOOTING)}}
    under_way = replace(cordoned, services={"web": replace(record, slots=[0, 1, 2])}, slots=coming)
    assert planned(admission_request(replicas=2), under_way).stuck == ""
    homeless = replace(under_way, slots={"web": outdated})
    assert planned(admission_request(replicas=2), homeless).stuck.startswith("no host has room")


def test_a_plan_has_for_each_host_the_reason_why_it_takes_no_instance() -> None:
    off = [Avoidance(slot=0, host="box-kept", until=AT + EXCLUSION)]
    fixed = replace(host(), services={"web": Offer(fixed_port=8080)})
    hosts = {
        "box-free": host("web", room=2),
        "box-kept": host("web", room=2),
        "box-other": host("api"),
        "box-leaving": host("web", closing=True),
        "box-troubled": host("web", ready=False),
        "box-cordoned": host("web"),
        "box-drained": host("web"),
        "box-full": host("web", room=1),
        "box-port": fixed,
        "box-label": replace(host(), services={"web": Offer(needs={"zone": "a"})}),
    }
    claims = {1: slot("web", 1, on="box-full"), 2: slot("web", 2, on="box-port")}
    record = ServiceRecord(target=3, slots=[0, 1, 2], avoid=off)
    there = replace(
        fleet(hosts=hosts, services={"web": record}, slots={"web": claims}),
        orders={
            "box-cordoned": HostOrder(reason="fan", at=AT),
            "box-drained": HostOrder(draining=True),
        },
    )
    plan = planned(admission_request(replicas=3), there)
    assert {item.name: (item.room, item.why_not) for item in plan.hosts} == {
        "box-free": (2, ""),
        "box-kept": (2, "kept off it until 2026-11-21T08:10:00Z, as they failed there: slots 0"),
        "box-other": (0, "it does not offer the service"),
        "box-leaving": (0, "it is about to leave"),
        "box-troubled": (0, "its Box is not ready: `box-bridge hosts` says why"),
        "box-cordoned": (0, "cordoned since 2026-11-21T08:00:00Z: fan"),
        "box-drained": (0, "being drained"),
        "box-full": (0, "full: 1 of 1"),
        "box-port": (0, "port 8080 is taken by its instance there"),
        "box-label": (0, "unfit: it needs a host with zone = 'a', not None"),
    }


def test_the_plan_of_a_refused_request_has_the_reason_and_changes_nothing() -> None:
    refused = planned(admission_request("jobs", 3), state())
    assert not refused.accepted
    assert (refused.before, refused.target, refused.slots) == (0, 0, [])
    assert str(refused.error).startswith("unknown service 'jobs'")


def test_a_plan_that_is_too_large_is_cut_after_the_hosts_and_counts_the_rest() -> None:
    plan = planned(admission_request(replicas=6), state())
    lines = len(plan.hosts) + len(plan.slots)
    assert [item.name for item in plan.hosts] == ["box-a", "box-b", "box-dead"]
    short = _shortened(plan, 4)
    assert (short.hosts, short.slots) == (plan.hosts, plan.slots[:1])
    assert short.omitted == lines - 4
    assert _shortened(plan, lines) == plan
