"""What a host should do: the same answer everywhere, and no more than there is to do."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from itertools import islice

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from bridge.box.scheduler.placement import (
    HostRoom,
    Placement,
    able_hosts,
    excluded_hosts,
    place,
    run_blocker,
)
from bridge.box.scheduler.planner import (
    MAX_EXCLUSIONS,
    Claim,
    Drain,
    GiveUp,
    LocalInstance,
    Make,
    Release,
    plan,
    wake_at,
    with_avoidance,
)
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.records import (
    Avoidance,
    Demand,
    HostIdentity,
    HostOrder,
    HostRecord,
    Offer,
    ServiceRecord,
)
from bridge.protocol import InstanceState, ScaleConfig
from tests.unit.fleets import AT, SERVICES, fleet, fleets, host, slot

ME = HostIdentity(host="box-a", host_id="id")
LIVING, ENDED = LocalInstance(ended=False), LocalInstance(ended=True)


def web(*slots: int, target: int | None = None, config: ScaleConfig | None = None) -> ServiceRecord:
    return ServiceRecord(
        target=len(slots) if target is None else target,
        slots=sorted(slots),
        config=config or ScaleConfig(),
    )


def test_a_free_slot_is_claimed_by_the_host_with_most_room_then_by_name() -> None:
    hosts = {"box-a": host(room=2), "box-b": host(room=3)}
    state = fleet(hosts=hosts, services={"web": web(0, 1, 2, 3)})
    placed = place("web", state, state.services["web"], [0, 1, 2, 3], at=AT)
    assert placed == {0: "box-b", 1: "box-a", 2: "box-b", 3: "box-a"}
    assert plan("web", state, ME, {}, now=0, at=AT) == [Claim(slot=1), Claim(slot=3)]


def test_a_slot_with_a_lost_claim_is_left_to_its_live_host() -> None:
    hosts = {"box-a": host(room=2), "box-b": host(room=3)}
    lost = {"web": {0: "box-a", 1: "box-b", 2: "box-gone"}}
    state = fleet(hosts=hosts, services={"web": web(0, 1, 2)}, lost=lost)
    assert plan("web", state, ME, {0: LIVING}, now=0, at=AT) == []
    assert plan("web", state, ME, {}, now=0, at=AT) == [Claim(slot=0)]
    other = HostIdentity(host="box-b", host_id="id")
    assert plan("web", state, other, {}, now=0, at=AT) == [Claim(slot=1), Claim(slot=2)]


def test_slots_without_room_stay_in_the_set() -> None:
    state = fleet(hosts={"box-a": host(room=1)}, services={"web": web(0, 1, 2)})
    assert plan("web", state, ME, {}, now=0, at=AT) == [Claim(slot=0)]


def test_the_room_of_draining_instances_is_not_free_yet() -> None:
    state = fleet(
        hosts={"box-a": host(room=1)},
        services={"web": web(1)},
        slots={"web": {0: slot("web", 0, InstanceState.DRAINING)}},
    )
    draining = {0: LocalInstance(ended=False, leaving=True)}
    assert plan("web", state, ME, draining, now=0, at=AT) == []


def test_a_missing_record_is_no_order() -> None:
    state = fleet(slots={"web": {0: slot("web", 0)}})
    assert plan("web", state, ME, {0: LIVING}, now=0, at=AT) == []


def test_drains_come_before_actions_that_wait_for_the_bus() -> None:
    state = fleet(
        services={"web": web(0, 2, 3)}, slots={"web": {0: slot("web", 0), 1: slot("web", 1)}}
    )
    actions = plan("web", state, ME, {1: LIVING}, now=0, at=AT)
    drain = Drain(slot=1, reason="scaled down")
    assert actions == [drain, Make(slot=0), Claim(slot=2), Claim(slot=3)]


def test_an_instance_outside_the_set_drains_and_its_slot_is_released_after_its_end() -> None:
    state = fleet(services={"web": web(0)}, slots={"web": {0: slot("web", 0), 1: slot("web", 1)}})
    both = {0: LIVING, 1: LIVING}
    assert plan("web", state, ME, both, now=0, at=AT) == [Drain(slot=1, reason="scaled down")]
    leaving = {0: LIVING, 1: LocalInstance(ended=False, leaving=True)}
    assert plan("web", state, ME, leaving, now=0, at=AT) == []
    assert plan("web", state, ME, {0: LIVING, 1: ENDED}, now=0, at=AT) == [Release(slot=1)]
    assert plan("web", state, ME, {0: LIVING}, now=0, at=AT) == [Release(slot=1)]


def test_an_ended_instance_is_made_again_when_its_backoff_has_passed() -> None:
    state = fleet(services={"web": web(0)}, slots={"web": {0: slot("web", 0)}})
    failed = {0: LocalInstance(ended=True, retry_at=5.0)}
    assert plan("web", state, ME, failed, now=4.9, at=AT) == []
    assert wake_at(failed.values(), since=4.9) == 5.0
    assert plan("web", state, ME, failed, now=5.0, at=AT) == [Make(slot=0)]
    assert wake_at(failed.values(), since=5.0) is None


def test_a_claim_of_this_host_without_an_instance_gets_one() -> None:
    state = fleet(services={"web": web(0)}, slots={"web": {0: slot("web", 0)}})
    assert plan("web", state, ME, {}, now=0, at=AT) == [Make(slot=0)]


def test_the_claim_of_another_host_wins() -> None:
    state = fleet(services={"web": web(0)}, slots={"web": {0: slot("web", 0, on="box-b")}})
    assert plan("web", state, ME, {}, now=0, at=AT) == []
    assert plan("web", state, ME, {0: LIVING}, now=0, at=AT) == [
        Drain(slot=0, reason="slot taken by box-b")
    ]
    stranger = HostIdentity(host="box-b", host_id="another id")
    assert plan("web", state, stranger, {}, now=0, at=AT) == []


def test_a_slot_with_an_unreadable_claim_is_never_taken() -> None:
    state = fleet(services={"web": web(0)}, unreadable={"web": {0}})
    assert plan("web", state, ME, {}, now=0, at=AT) == []


def test_hosts_that_cannot_honour_the_config_are_not_chosen() -> None:
    hosts = {"box-a": host(cpus=2, room=9), "box-b": host(cpus=8, room=1)}
    record = web(0, 1, config=ScaleConfig(vcpus=4))
    assert place("web", fleet(hosts=hosts, services={"web": record}), record, [0, 1], at=AT) == {
        0: "box-b"
    }


def test_a_fixed_port_takes_one_slot_a_host_and_waits_for_the_old_one_to_go() -> None:
    hosts = {"box-a": host(fixed_port=8080), "box-b": host(fixed_port=8080)}
    record = web(0, 1, 2)
    state = fleet(hosts=hosts, services={"web": record})
    assert place("web", state, record, [0, 1, 2], at=AT) == {0: "box-a", 1: "box-b"}
    held = fleet(
        hosts=hosts,
        services={"web": record},
        slots={"web": {9: slot("web", 9, InstanceState.DRAINING)}},
    )
    assert place("web", held, record, [0], at=AT) == {0: "box-b"}


def test_closing_hosts_get_no_slots() -> None:
    state = fleet(hosts={"box-a": host(closing=True)}, services={"web": web(0)})
    assert plan("web", state, ME, {}, now=0, at=AT) == []


def test_work_for_one_host_is_done_by_the_first_ready_host() -> None:
    lost = {"web": {9: slot("web", 9, on="box-lost")}}
    other = HostIdentity(host="box-b", host_id="id")
    for ready, who in ((True, ME), (False, other)):
        hosts = {"box-a": host(ready=ready), "box-b": host()}
        state = fleet(hosts=hosts, services={"web": web()}, slots=lost)
        state = replace(state, dead={"box-lost"})
        deciding = [me for me in (ME, other) if plan("web", state, me, {}, now=0, at=AT)]
        assert deciding == [who]


def test_a_host_that_is_not_ready_gets_no_slots_and_keeps_its_own() -> None:
    hosts = {"box-a": host(room=9, ready=False), "box-b": host(room=1)}
    claims = {"web": {0: slot("web", 0)}}
    state = fleet(hosts=hosts, services={"web": web(0, 1, 2)}, slots=claims)
    assert plan("web", state, HostIdentity(host="box-b", host_id="id"), {}, now=0, at=AT) == [
        Claim(slot=1)
    ]
    assert plan("web", state, ME, {0: LIVING}, now=0, at=AT) == []


def test_an_instance_with_an_old_config_drains_with_that_reason() -> None:
    record = web(1, config=ScaleConfig(env={"A": "1"}))
    state = fleet(services={"web": record}, slots={"web": {0: slot("web", 0)}})
    [action] = [
        a for a in plan("web", state, ME, {0: LIVING}, now=0, at=AT) if isinstance(a, Drain)
    ]
    assert action.reason == "replaced: its config has changed"


# ── properties ───────────────────────────────────────────────────────────────────────────


@given(fleets(), st.sampled_from(["web", "api", "jobs"]))
def test_all_hosts_together_place_each_slot_once_and_never_beyond_their_room(
    state: FleetState, service: str
) -> None:
    record = state.services.get(service)
    if record is None:
        return
    free = [number for number in record.slots if number not in state.slots_of(service)]
    claims: list[int] = []
    for name, there in state.hosts.items():
        mine = [
            action.slot
            for action in plan(
                service, state, HostIdentity(host=name, host_id="other"), {}, now=0, at=AT
            )
            if isinstance(action, Claim)
        ]
        assert len(mine) <= max(0, there.max_instances - state.used.get(name, 0))
        assert not mine or (service in there.services and not there.closing)
        claims += mine
    assert len(claims) == len(set(claims))
    assert set(claims) <= set(free)
    room = sum(
        max(0, there.max_instances - state.used.get(name, 0))
        for name, there in state.offering(service).items()
        if there.services[service].needs.items() <= there.labels.items()
    )
    assert len(claims) == min(len(free), room)  # nothing is left lying that there is room for


NEEDS = st.sampled_from([{}, {}, {"zone": "a"}])
DEMANDS = st.builds(Demand, vcpus=st.integers(0, 3), memory_mib=st.sampled_from([0, 0, 512]))


@st.composite
def demanding(draw: st.DrawFn) -> FleetState:
    """A fleet with labels, needs, demands, fixed ports, orders, avoided hosts, dead ones, moves."""
    state = draw(fleets())
    offers = {
        name: Offer(
            needs=draw(NEEDS), demand=draw(DEMANDS), fixed_port=draw(st.sampled_from([0, 0, 80]))
        )
        for name in SERVICES
    }
    hosts = {
        name: replace(
            there,
            services={service: offers[service] for service in there.services},
            labels={"zone": draw(st.sampled_from("ab"))},
            memory_mib=draw(st.sampled_from([0, 1024])),
        )
        for name, there in state.hosts.items()
    }
    names = [*hosts, "box-gone"]
    orders = draw(st.lists(st.sampled_from(names), max_size=2, unique=True))
    services = {
        name: replace(
            record,
            moves=[number for number in record.slots if draw(st.booleans())],
            avoid=[
                Avoidance(
                    slot=number,
                    host=draw(st.sampled_from(names)),
                    until=AT + timedelta(seconds=draw(st.sampled_from([-1, 1]))),
                )
                for number in record.slots
                if draw(st.booleans())
            ],
        )
        for name, record in state.services.items()
    }
    return replace(
        state,
        hosts=hosts,
        services=services,
        dead=draw(st.sampled_from([frozenset(), frozenset({"box-gone"})])),
        orders={name: HostOrder(draining=draw(st.booleans())) for name in orders},
        reserved={name: draw(DEMANDS) for name in hosts},
    )


def free_slots(state: FleetState, service: str) -> list[int]:
    """The slots of the set that nobody holds, or somebody dead."""
    claims = state.slots_of(service)
    return [
        number
        for number in state.services[service].slots
        if number not in claims or state.is_orphan(claims[number])
    ]


@given(demanding(), st.sampled_from(SERVICES))
def test_all_hosts_place_alike_and_only_where_the_slot_may_go(
    state: FleetState, service: str
) -> None:
    record = state.services.get(service)
    if record is None:
        return
    placed = place(service, state, record, free_slots(state, service), at=AT)
    taken = Counter(placed.values())
    for number, name in placed.items():
        there = state.hosts[name]
        assert service in there.services
        assert not there.closing
        assert name not in state.orders
        assert not run_blocker(service, there, record.config)
        assert taken[name] <= there.max_instances - state.used.get(name, 0)
        assert taken[name] == 1 or not there.services[service].fixed_port
        assert not any(
            item.slot == number and item.host == name and item.until > AT for item in record.avoid
        )
    for name, there in state.hosts.items():
        me = HostIdentity(host=name, host_id=there.host_id)
        claims = [
            action.slot
            for action in plan(service, state, me, {}, now=0, at=AT)
            if isinstance(action, Claim)
        ]
        assert claims == [number for number in record.slots if placed.get(number) == name]


@given(fleets() | demanding(), st.sampled_from(SERVICES), st.tuples(*[st.integers(0, 6)] * 3))
def test_slots_placed_together_go_where_each_would_go_alone(
    state: FleetState, service: str, batches: tuple[int, ...]
) -> None:
    record = state.services.get(service, ServiceRecord())
    off = excluded_hosts(record, AT)
    at_once = Placement(service, state, record, HostRoom(state))
    numbers, placed = iter(range(sum(batches))), dict[int, str]()
    for size in batches:
        placed |= at_once.place(list(islice(numbers, size)), off)

    spare, own = HostRoom(state), Counter(state.service_slots(service).hosts)
    board = Placement(service, state, record, spare)
    alone = {}
    for number in range(sum(batches)):
        ranks = [
            (not board.fits(name), -spare.room[name], own[name], name)
            for name in able_hosts(service, state, record)[0]
            if board.left(name) > 0 and name not in off.get(number, ())
        ]
        if ranks:
            alone[number] = best = min(ranks)[-1]
            own[best] += 1
            board.take(best)
    assert placed == alone
    assert [at_once.left(name) for name in spare.room] == [board.left(name) for name in spare.room]


@given(demanding(), st.sampled_from(SERVICES))
def test_an_instance_in_a_wanted_slot_is_left_alone(state: FleetState, service: str) -> None:
    """Whatever is ordered, moved or avoided: it goes only once its slot is out of the set."""
    for name, there in state.hosts.items():
        me = HostIdentity(host=name, host_id=there.host_id)
        local = {
            number: LIVING for number, claim in state.slots_of(service).items() if me.holds(claim)
        }
        record = state.services.get(service)
        for action in plan(service, state, me, local, now=0, at=AT):
            assert record is not None
            assert not isinstance(action, Drain) or action.slot not in record.slots
            assert not isinstance(action, Make | GiveUp)


@given(fleets(), st.integers(0, 9))
def test_plans_converge_on_one_host(state: FleetState, target: int) -> None:
    """Carrying plans out, round by round, ends with exactly the slots of the set claimed."""
    record = web(*range(target))
    alone: dict[str, HostRecord] = {"box-a": host("web", room=20)}
    mine = {number: replace(claim, host="box-a") for number, claim in state.slots_of("web").items()}
    local = dict.fromkeys(mine, LIVING)
    for _ in range(4):
        now = fleet(hosts=alone, services={"web": record}, slots={"web": mine})
        for action in plan("web", now, ME, local, now=0, at=AT):
            match action:
                case Claim(slot=number) | Make(slot=number):
                    mine[number] = slot("web", number)
                    local[number] = LIVING
                case Drain(slot=number):
                    local[number] = ENDED
                case Release(slot=number):
                    del mine[number]
                    del local[number]
    assert sorted(mine) == sorted(local) == list(range(target))
    settled = fleet(hosts=alone, services={"web": record}, slots={"web": mine})
    assert plan("web", settled, ME, local, now=0, at=AT) == []


def test_a_slot_without_a_living_instance_leaves_a_drained_host_if_another_can_take_it() -> None:
    hosts = {"box-a": host(), "box-b": host()}
    claims = {"web": {0: slot("web", 0, InstanceState.FAILED)}}
    state = fleet(hosts=hosts, services={"web": web(0)}, slots=claims)
    assert plan("web", state, ME, {0: ENDED}, now=0, at=AT) == [Make(slot=0)]
    drained = replace(state, orders={"box-a": HostOrder(draining=True)})
    assert plan("web", drained, ME, {0: ENDED}, now=0, at=AT) == [Release(slot=0)]
    waiting = LocalInstance(ended=True, failures=1, retry_at=9.0)
    assert plan("web", state, ME, {0: waiting}, now=0, at=AT) == []
    assert plan("web", drained, ME, {0: waiting}, now=0, at=AT) == [Release(slot=0)]
    untold = LocalInstance(ended=True, settled=False)
    assert plan("web", drained, ME, {0: untold}, now=0, at=AT) == [Make(slot=0)]
    cordoned = replace(state, orders={"box-a": HostOrder()})
    assert plan("web", cordoned, ME, {0: ENDED}, now=0, at=AT) == [Make(slot=0)]
    alone = replace(drained, hosts={"box-a": host()})
    assert plan("web", alone, ME, {0: waiting}, now=0, at=AT) == []
    forced = replace(alone, orders={"box-a": HostOrder(draining=True, forced=True)})
    assert plan("web", forced, ME, {0: waiting}, now=0, at=AT) == [Release(slot=0)]
    assert plan("web", alone, ME, {0: ENDED}, now=0, at=AT) == [Make(slot=0)]


def test_a_slot_that_keeps_failing_is_let_go_where_another_host_would_take_it() -> None:
    hosts = {"box-a": host(), "box-b": host()}
    claims = {"web": {0: slot("web", 0, InstanceState.FAILED)}}
    state = fleet(hosts=hosts, services={"web": web(0)}, slots=claims)
    four, five = (LocalInstance(ended=True, failures=count) for count in (4, 5))
    assert plan("web", state, ME, {0: four}, now=0, at=AT) == [Make(slot=0)]
    assert plan("web", state, ME, {0: five}, now=0, at=AT) == [GiveUp(slot=0)]
    alone = replace(state, hosts={"box-a": host()})
    assert plan("web", alone, ME, {0: five}, now=0, at=AT) == [Make(slot=0)]
    off = replace(web(0), avoid=with_avoidance(web(0), 0, "box-b", AT))
    tried = replace(state, services={"web": off})
    assert plan("web", tried, ME, {0: five}, now=0, at=AT) == [Make(slot=0)]


def test_only_the_newest_exclusions_are_kept() -> None:
    record = web(0)
    for number in range(MAX_EXCLUSIONS + 5):
        record = replace(record, avoid=with_avoidance(record, number, "box-a", AT))
    assert [item.slot for item in record.avoid] == list(range(5, MAX_EXCLUSIONS + 5))
