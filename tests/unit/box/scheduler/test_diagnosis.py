"""What a service lacks, and why: from the records alone, at a cost without the rest of a fleet."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from msgspec.structs import replace

from bridge.box.scheduler import diagnosis
from bridge.box.scheduler.planner import EXCLUSION
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.lifecycle import SERVING
from bridge.box.state.records import (
    Avoidance,
    HostOrder,
    Offer,
    Rollout,
    ServiceRecord,
    SlotRecord,
)
from bridge.protocol import InstanceState
from tests.support import calls
from tests.unit.fleets import AT, fleet, fleets, host, slot

S = InstanceState


def wanting(count: int) -> ServiceRecord:
    return ServiceRecord(target=count, slots=list(range(count)))


def lacks(state: FleetState, service: str = "web") -> str:
    return diagnosis.notices(state, [service], at=AT).get(service, "")


def test_a_complete_or_booting_service_lacks_nothing() -> None:
    states = {0: slot("web", 0), 1: slot("web", 1, S.BUSY), 2: slot("web", 2, S.BOOTING)}
    there = fleet(services={"web": wanting(4)}, slots={"web": states})
    found = diagnosis.shortfall("web", there, at=AT)
    assert (found.wanted, found.serving) == (4, 2)
    assert lacks(there) == ""  # one boots, and box-a will claim slot 3
    assert diagnosis.notices(there, ["web", "api"], at=AT) == {}


def test_instances_without_room_are_reported_with_the_number_of_places() -> None:
    hosts = {"box-a": host("web", room=2), "box-b": host("web", room=1), "box-c": host("api")}
    claims = {0: slot("web", 0), 1: slot("web", 1), 2: slot("web", 2, on="box-b")}
    full = fleet(hosts=hosts, services={"web": wanting(5)}, slots={"web": claims})
    assert lacks(full) == "2 of 5 have no room: 3 of 3 places are taken"
    claiming = replace(full, slots={"web": {0: claims[0]}}, used={"box-a": 1})
    assert lacks(claiming) == lacks(full), "two are about to be claimed"
    cordoned = replace(full, orders={"box-b": HostOrder()}, services={"web": wanting(4)})
    assert lacks(cordoned) == (
        "1 of 4 has no room: 2 of 2 places are taken, 1 more host is cordoned or not ready"
    )
    shut = replace(full, hosts={"box-a": host("web", ready=False)})
    assert "2 of 5 have no room: its hosts are cordoned, or not ready" in lacks(shut)
    none = fleet(hosts={"box-c": host("api")}, services={"web": wanting(1)})
    assert lacks(none) == "1 of 1 has no room: no live host can run it"
    elsewhere = {"box-a": replace(host(), services={"web": Offer(needs={"zone": "b"})})}
    unfit = fleet(hosts=elsewhere, services={"web": wanting(1)})
    assert lacks(unfit) == (
        "1 of 1 has no room: no live host can run it: "
        "box-a: it needs a host with zone = 'b', not None"
    )
    fixed = {"box-a": replace(host(), services={"web": Offer(fixed_port=80)})}
    alone = fleet(hosts=fixed, services={"web": wanting(2)}, slots={"web": {0: slot("web", 0)}})
    assert lacks(alone) == ("1 of 2 has no room: each host takes one alone, as its port is fixed")


def test_slots_without_a_living_instance_are_reported_with_their_hosts() -> None:
    claims = {
        number: slot("web", number, S.FAILED, on=f"box-{'ab'[number % 2]}") for number in range(4)
    }
    hosts = {"box-a": host("web"), "box-b": host("web")}
    there = fleet(hosts=hosts, services={"web": wanting(4)}, slots={"web": claims})
    assert lacks(there) == "4 of 4 failed on box-a, box-b; `box-bridge logs web-0-box-a`"
    one = replace(
        there, slots={"web": {**claims, 0: slot("web", 0), 1: slot("web", 1), 2: slot("web", 2)}}
    )
    assert lacks(one) == "1 of 4 failed on box-b; `box-bridge logs web-3-box-b`"


def test_the_failure_whose_retry_comes_first_is_reported_with_its_reason() -> None:
    claims = {number: slot("web", number, S.FAILED) for number in range(2)}
    claims[1] = replace(
        claims[1],
        failure="exited with code 3: cannot open database",
        retry_at=AT + timedelta(seconds=8),
    )
    there = fleet(services={"web": wanting(2)}, slots={"web": claims})
    assert lacks(there) == (
        "2 of 2 failed on box-a: exited with code 3: cannot open database; next try in 8 s; "
        "`box-bridge logs web-1-box-a`"
    )


def test_instances_on_dead_hosts_are_reported_from_the_end_of_the_lease() -> None:
    claims = {
        0: slot("web", 0),
        1: slot("web", 1, on="box-b"),
        2: slot("web", 2, S.FAILED, on="box-b"),
    }
    there = fleet(services={"web": wanting(3)}, slots={"web": claims})
    assert lacks(there) == "2 are on box-b, which is dead"  # nobody may take them over yet
    found = diagnosis.shortfall("web", there, at=AT)
    assert (found.serving, dict(found.failed)) == (1, {})
    newer = replace(there, unreadable_hosts={"box-b"})
    assert lacks(newer) == "1 of 3 failed on box-b; `box-bridge logs web-2-box-b`", "it lives"
    over = replace(there, dead={"box-b"}, hosts={"box-a": host("web", room=1)})
    assert lacks(over) == (
        "2 of 3 have no room: 1 of 1 places are taken; 2 are on box-b, which is dead"
    )
    reborn = replace(claims[0], host_id="old")
    anew = fleet(services={"web": wanting(1)}, slots={"web": {0: reborn}})
    assert lacks(anew) == "1 is on an earlier box-a, which is dead"


def test_excluded_slots_are_reported_with_the_end_of_the_exclusion() -> None:
    off = [
        Avoidance(slot=0, host="box-a", until=AT + EXCLUSION),
        Avoidance(slot=1, host="box-b", until=AT + timedelta(minutes=1)),
        Avoidance(slot=2, host="box-b", until=AT + timedelta(minutes=2)),
        Avoidance(slot=0, host="box-b", until=AT),  # that time is over
        Avoidance(slot=9, host="box-b", until=AT + EXCLUSION),  # nobody wants that slot
    ]
    record = replace(wanting(3), avoid=off)
    claims = {number: slot("web", number) for number in range(3)}
    assert lacks(fleet(services={"web": record}, slots={"web": claims})) == (
        "slot 0 is kept off box-a until 08:10 UTC; slots 1, 2 are kept off box-b until 08:02 UTC"
    )
    alone = fleet(services={"web": replace(record, slots=[0], target=1)})
    assert lacks(alone) == (
        "1 of 1 has no room: they are kept off the hosts that have some; "
        "slot 0 is kept off box-a until 08:10 UTC"
    )


def test_a_stopped_rollout_is_reported_first_and_separately() -> None:
    stopped = replace(wanting(1), rollout=Rollout(config="c", stopped="rollout stopped: why"))
    there = fleet(services={"web": stopped}, slots={"web": {0: slot("web", 0, S.FAILED)}})
    assert lacks(there).startswith("rollout stopped: why; 1 of 1 failed")
    assert diagnosis.stop_reasons(there, ["web", "api"]) == {"web": "rollout stopped: why"}


def test_a_replacement_that_fails_is_one_more_than_are_wanted() -> None:
    record = replace(wanting(2), slots=[0, 1, 2])
    claims = {0: slot("web", 0), 1: slot("web", 1), 2: slot("web", 2, S.FAILED)}
    there = fleet(services={"web": record}, slots={"web": claims})
    assert lacks(there) == "1 of 3 failed on box-a; `box-bridge logs web-2-box-a`"
    assert diagnosis.shortfall("web", there, at=AT).wanted == 2


def test_an_unreadable_record_is_reported() -> None:
    there = replace(fleet(), unreadable_services={"web"})
    assert lacks(there) == "its record cannot be read by this Box"


def test_the_notices_are_bounded() -> None:
    names = [f"service-{number:03}" for number in range(200)]
    hosts = {f"box-{number:03}": host(*names, room=1) for number in range(50)}
    claims = {number: slot("web", number, S.FAILED, on=f"box-{number:03}") for number in range(50)}
    services = {name: wanting(30) for name in names} | {"web": wanting(50)}
    there = fleet(hosts=hosts, services=services, slots={"web": claims})
    told = diagnosis.notices(there, [*names, "web"], at=AT)
    assert len(told) == 21
    assert told[diagnosis.OTHERS] == "there may be more problems: see `box-bridge services`"
    [said] = diagnosis.notices(there, ["web"], at=AT).values()
    assert "box-000, box-001, box-002, box-003, box-004 and 45 more" in said
    room = replace(there, hosts={"box-z": host(*names, room=10**6)})
    assert set(diagnosis.notices(room, names, at=AT)) == {diagnosis.OTHERS}, "some are looked at"


@given(fleets())
def test_serving_and_missing_instances_are_counted_from_the_same_slots(state: FleetState) -> None:
    for service, record in state.services.items():
        found, claims = diagnosis.shortfall(service, state, at=AT), state.slots_of(service)
        alive = {n: c for n, c in claims.items() if n in record.slots and c.host in state.hosts}
        assert found.serving == sum(c.info.state in SERVING for c in alive.values())
        assert sum(found.failed.values()) == sum(c.info.state is S.FAILED for c in alive.values())
        assert found.serving + sum(found.failed.values()) + len(found.homeless) <= len(record.slots)
        gone = sum(c.host not in state.hosts for n, c in claims.items() if n in record.slots)
        assert sum(found.dead.values()) == gone


def _among(others: int, claims: dict[int, SlotRecord]) -> FleetState:
    """`web` of four instances on a full host, among so many other services on as many hosts."""
    names = [f"other-{number}" for number in range(others)]
    hosts = {f"host-{name}": host(name) for name in names} | {"box-a": host("web", room=3)}
    return fleet(
        hosts=hosts,
        services={"web": wanting(4)} | {name: wanting(1) for name in names},
        slots={"web": claims} | {name: {0: slot(name, 0, on=f"host-{name}")} for name in names},
    )


@pytest.mark.parametrize("state", [S.READY, S.FAILED])
def test_the_diagnosis_of_one_service_costs_the_same_in_a_large_fleet(state: InstanceState) -> None:
    claims = {number: slot("web", number, state) for number in range(3)}
    small, large = _among(2, claims), _among(2000, claims)
    assert "1 of 4 has no room: 3 of 3 places are taken" in lacks(small)
    assert lacks(small) == lacks(large)
    assert calls(lambda: lacks(small)) == calls(lambda: lacks(large))


def test_the_diagnosis_of_a_complete_service_costs_the_same_at_any_size() -> None:
    def whole(count: int) -> FleetState:
        claims = {number: slot("web", number) for number in range(count)}
        hosts = {"box-a": host("web", room=count)}
        return fleet(hosts=hosts, services={"web": wanting(count)}, slots={"web": claims})

    few, many = whole(3), whole(3000)
    assert lacks(few) == lacks(many) == ""
    assert calls(lambda: lacks(few)) == calls(lambda: lacks(many))
