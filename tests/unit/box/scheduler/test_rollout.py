"""Replacing instances one at a time, from any state, with one step after the other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from bridge.box.scheduler import rollout
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.records import HostOrder, Offer, Rollout, ServiceRecord, SlotRecord
from bridge.protocol import InstanceState, ScaleConfig
from tests.unit.fleets import AT, fleet, host, slot

NEW = ScaleConfig(env={"LEVEL": "debug"})
OLD_ID = ServiceRecord().config_id
NEW_ID = ServiceRecord(config=NEW).config_id
S = InstanceState


def rolling(
    slots: dict[int, SlotRecord], *, target: int, room: int = 10, rollout_: Rollout | None = None
) -> FleetState:
    record = ServiceRecord(target=target, slots=sorted(slots), config=NEW, rollout=rollout_)
    return fleet(hosts={"box-a": host(room=room)}, services={"web": record}, slots={"web": slots})


def step(state: FleetState) -> ServiceRecord | None:
    return rollout.next_step("web", state, at=AT, host="box-a")


def old(number: int, state: InstanceState = S.READY) -> SlotRecord:
    return slot("web", number, state, config=OLD_ID)


def new(number: int, state: InstanceState = S.READY, *, ready: bool = True) -> SlotRecord:
    return slot("web", number, state, config=NEW_ID, ready=ready)


def test_the_replacement_comes_before_the_outdated_one_goes() -> None:
    first = step(rolling({0: old(0), 1: old(1)}, target=2))
    assert first is not None
    assert (first.slots, first.target) == ([0, 1, 2], 2)
    assert first.rollout == Rollout(config=NEW_ID)
    not_ready = rolling({0: old(0), 1: old(1), 2: new(2, S.BOOTING)}, target=2)
    assert step(not_ready) is None
    ready = step(rolling({0: old(0), 1: old(1), 2: new(2)}, target=2))
    assert ready is not None
    assert len(ready.slots) == 2
    assert 2 in ready.slots


def test_each_step_names_its_cause() -> None:
    def note(state: FleetState) -> str | None:
        after = step(state)
        assert after is not None
        assert after.decision is not None
        assert after.decision.step
        return after.decision.error

    outdated = rolling({0: old(0), 1: old(1)}, target=2)
    assert note(outdated) == "rollout: a replacement comes for a new config"
    both = rolling({0: old(0), 1: old(1), 2: new(2)}, target=2)
    assert note(both) == "rollout: an outdated instance goes for a new config"
    full = rolling({0: old(0), 1: old(1)}, target=2, room=2)
    assert note(full) == "rollout: one instance is replaced for a new config"
    drained = fleet(
        hosts={name: host() for name in ("box-a", "box-b", "box-c")},
        services={"web": ServiceRecord(target=2, slots=[0, 1], config=NEW)},
        slots={"web": {0: slot("web", 0, on="box-c", config=NEW_ID), 1: new(1)}},
    )
    orders = {name: HostOrder(draining=True) for name in ("box-c", "box-x")}
    drained = replace(drained, orders=orders)
    assert note(drained) == "rollout: a replacement comes for the drain of box-c"
    moved = replace(drained.services["web"], moves=[1])
    cause = "the drain of box-c and a rebalance"
    assert note(replace(drained, services={"web": moved})) == (
        f"rollout: a replacement comes for {cause}"
    )


def surging(slots: dict[int, SlotRecord], surge: int, *, target: int, room: int = 10) -> FleetState:
    state = rolling(slots, target=target, room=room)
    offers = {"web": Offer(max_surge=surge)}
    return replace(state, hosts={"box-a": replace(host(room=room), services=offers)})


def test_max_surge_sets_how_many_replacements_come_at_a_time() -> None:
    first = step(surging({n: old(n) for n in range(4)}, 3, target=4))
    assert first is not None
    assert first.slots == [0, 1, 2, 3, 4, 5, 6]
    halfway = {n: old(n) for n in range(4)} | {4: new(4), 5: new(5), 6: new(6, S.BOOTING)}
    after = step(surging(halfway, 3, target=4))
    assert after is not None
    assert len(after.slots) == 5  # two of them serve, so two outdated ones go
    assert {4, 5, 6} < set(after.slots)
    left = {n: there for n, there in halfway.items() if n in after.slots}
    more = step(surging(left, 3, target=4))
    assert more is not None
    assert len(more.slots) == 6  # no more than there are outdated ones


def test_no_more_replacements_come_than_there_is_room_for() -> None:
    after = step(surging({n: old(n) for n in range(4)}, 3, target=4, room=5))
    assert after is not None
    assert len(after.slots) == 5


def test_the_lowest_max_surge_of_the_hosts_applies() -> None:
    state = surging({n: old(n) for n in range(4)}, 3, target=4)
    careful = replace(host(), services={"web": Offer(max_surge=2)})
    after = step(replace(state, hosts={**state.hosts, "box-b": careful}))
    assert after is not None
    assert len(after.slots) == 6


def test_a_rollout_that_stops_gives_up_all_replacements_that_do_not_serve() -> None:
    claims = {n: old(n) for n in range(3)} | {3: new(3, S.FAILED), 4: new(4, S.BOOTING)}
    state = surging(claims, 2, target=3)
    record = replace(state.services["web"], rollout=Rollout(config=NEW_ID, failures=2))
    state = replace(state, services={"web": record})
    stopped = rollout.count_failure("web", state, 3, "why", at=AT, host="box-a")
    assert stopped is not None
    assert stopped.slots == [0, 1, 2]


def test_without_room_the_old_one_goes_first() -> None:
    state = step(rolling({0: old(0), 1: old(1)}, target=2, room=2))
    assert state is not None
    assert len(state.slots) == 2
    assert 2 in state.slots


def test_with_a_fixed_port_the_old_one_goes_first() -> None:
    config = ScaleConfig(port_map=["8080:80"])
    record = ServiceRecord(target=1, slots=[0], config=config)
    state = fleet(services={"web": record}, slots={"web": {0: old(0)}})
    after = rollout.next_step("web", state, at=AT, host="box-a")
    assert after is not None
    assert after.slots == [1]


def test_a_replacement_that_lost_its_room_takes_that_of_an_outdated_instance() -> None:
    first = step(rolling({0: old(0), 1: old(1)}, target=2, room=3))
    assert first is not None
    assert first.slots == [0, 1, 2]
    api = ServiceRecord(target=1, slots=[0])
    claims = {"web": {0: old(0), 1: old(1)}, "api": {0: slot("api", 0)}}
    hosts = {"box-a": host(room=3)}
    state = fleet(hosts=hosts, services={"web": first, "api": api}, slots=claims)
    after = step(state)
    assert after is not None
    assert len(after.slots) == 2
    assert 2 in after.slots
    assert step(replace(state, services={"web": after, "api": api})) is None  # it drains first


def test_slots_without_room_do_not_keep_the_others_from_being_replaced() -> None:
    record = ServiceRecord(target=4, slots=[0, 1, 2, 3], config=NEW)  # a host has been lost
    state = fleet(
        hosts={"box-a": host(room=2)},
        services={"web": record},
        slots={"web": {0: old(0), 1: old(1)}},
    )
    after = step(state)
    assert after is not None
    assert len(after.slots) == 4
    assert len({0, 1} & set(after.slots)) == 1


def test_no_instance_goes_first_if_its_end_makes_no_room_for_its_replacement() -> None:
    config = ScaleConfig(vcpus=3)
    record = ServiceRecord(target=1, slots=[0], config=config)
    full = {"box-a": host(room=1, cpus=4), "box-b": host(room=5, cpus=2)}
    claims = {"web": {0: slot("web", 0, on="box-b", config=OLD_ID)}, "api": {0: slot("api", 0)}}
    api = ServiceRecord(target=1, slots=[0])
    state = fleet(hosts=full, services={"web": record, "api": api}, slots=claims)
    assert step(state) is None
    free = fleet(hosts={**full, "box-a": host(room=2)}, services={"web": record}, slots=claims)
    after = step(free)
    assert after is not None
    assert after.slots == [0, 1]


def test_no_step_is_taken_without_an_outdated_instance() -> None:
    assert step(rolling({0: new(0), 1: new(1)}, target=2)) is None
    assert not rollout.is_under_way("web", rolling({0: new(0)}, target=1))
    assert rollout.is_under_way("web", rolling({0: old(0)}, target=1))
    assert not rollout.is_under_way("nope", fleet())


def test_a_finished_rollout_is_taken_off_the_record() -> None:
    done = step(rolling({0: new(0)}, target=1, rollout_=Rollout(config=NEW_ID)))
    assert done is not None
    assert done.rollout is None


def test_an_ended_outdated_instance_is_not_waited_for() -> None:
    record = ServiceRecord(target=1, slots=[0], config=NEW)
    state = fleet(services={"web": record}, slots={"web": {0: old(0, S.FAILED)}})
    assert rollout.outdated("web", state) == []


def failure(state: FleetState, number: int) -> ServiceRecord | None:
    return rollout.count_failure("web", state, number, "no database", at=AT, host="box-a")


def test_three_consecutive_failures_stop_the_rollout_and_keep_the_old_instances() -> None:
    slots = {0: old(0), 1: old(1), 2: new(2, S.FAILED, ready=False)}
    state = rolling(slots, target=2, rollout_=Rollout(config=NEW_ID))
    for count in (1, 2):
        record = failure(state, 2)
        assert record is not None
        assert record.rollout == Rollout(config=NEW_ID, failures=count)
        assert record.decision is not None
        assert record.decision.error == f"rollout: failure {count}: no database"
        state = replace(state, services={"web": record})
    stopped = failure(state, 2)
    assert stopped is not None
    assert stopped.rollout is not None
    assert stopped.rollout.stopped == "rollout stopped after 3 failed replacements: no database"
    assert stopped.slots == [0, 1]
    assert stopped.decision is not None
    assert "no database" in str(stopped.decision.error)
    halted = replace(state, services={"web": stopped}, slots={"web": {0: old(0), 1: old(1)}})
    assert step(halted) is None
    assert failure(halted, 2) is None
    assert not rollout.is_under_way("web", halted)


def test_a_replacement_that_becomes_ready_forgets_the_failures_before_it() -> None:
    slots = {0: old(0), 1: old(1), 2: new(2)}
    record = step(rolling(slots, target=2, rollout_=Rollout(config=NEW_ID, failures=2)))
    assert record is not None
    assert record.rollout == Rollout(config=NEW_ID, failures=0)


def test_an_extra_slot_goes_after_no_instance_is_outdated() -> None:
    """As when a drain is taken back: its replacement came, and nobody has to go for it."""
    state = rolling({0: new(0), 1: new(1), 2: new(2)}, target=2, rollout_=Rollout(config=NEW_ID))
    record = step(state)
    assert record is not None
    assert (len(record.slots), record.rollout) == (2, None)
    alone = rolling({0: new(0), 1: new(1), 2: new(2)}, target=2)
    left = step(alone)
    assert left is not None
    assert len(left.slots) == 2


def test_failures_outside_a_rollout_are_not_its_business() -> None:
    assert failure(rolling({0: new(0, S.FAILED)}, target=1), 0) is None
    assert failure(fleet(), 0) is None
    after = rolling({0: new(0, S.FAILED)}, target=1, rollout_=Rollout(config=NEW_ID))
    assert failure(after, 0) is None  # nothing is outdated any more


@given(st.integers(1, 6), st.integers(1, 8))
def test_a_rollout_replaces_each_instance_once_and_keeps_all_but_one_serving(
    target: int, room: int
) -> None:
    target = min(target, room)
    slots = {number: old(number) for number in range(target)}
    state = rolling(slots, target=target, room=room)
    made = 0
    for _ in range(5 * target + 5):
        record = step(state)
        if record is None:
            break
        claims = dict(state.slots_of("web"))
        for number in claims.keys() - set(record.slots):
            del claims[number]  # it drained and was released
        assert len(claims) >= target - 1
        for number in set(record.slots) - claims.keys():
            claims[number] = new(number)
            made += 1
        assert len(claims) <= room
        state = fleet(hosts=dict(state.hosts), services={"web": record}, slots={"web": claims})
    else:
        raise AssertionError("the rollout does not end")
    final = state.services["web"]
    assert rollout.outdated("web", state) == []
    assert len(final.slots) == final.target == target
    assert made == target
    assert final.rollout is None


# ── moving ───────────────────────────────────────────────────────────────────────────────


def moving(*, there: int, web: ServiceRecord, others: int = 0) -> FleetState:
    """Two instances on box-a, slot 0 of which is to move; box-b has room for two, and `there` of
    another service; `others` of a third drain somewhere.
    """
    return fleet(
        hosts={"box-a": host(room=2), "box-b": host(room=2)},
        services={
            "api": ServiceRecord(target=there, slots=list(range(there))),
            "jobs": ServiceRecord(),
            "web": web,
        },
        slots={
            "web": {0: slot("web", 0), 1: slot("web", 1)},
            "api": {n: slot("api", n, on="box-b") for n in range(there)},
            "jobs": {n: slot("jobs", n, S.DRAINING, on="box-c") for n in range(others)},
        },
    )


def test_an_instance_that_is_to_move_stays_if_the_room_is_gone() -> None:
    web = ServiceRecord(target=2, slots=[0, 1], moves=[0])
    first = step(moving(there=1, web=web))
    assert first is not None
    assert first.slots == [0, 1, 2]
    before, begun = (step(moving(there=2, web=record)) for record in (web, first))
    assert before is not None
    assert (before.slots, before.moves, before.rollout) == ([0, 1], [], None)
    assert before.decision is not None
    assert before.decision.error == "rebalance: no room any more to move slots 0"
    assert begun is not None
    assert (begun.slots, begun.moves) == ([0, 1, 2], [])
    done = step(moving(there=2, web=begun))
    assert done is not None
    assert (done.slots, done.rollout) == ([0, 1], None)


def test_a_move_waits_for_room_that_is_about_to_come() -> None:
    web = ServiceRecord(target=2, slots=[0, 1], moves=[0])
    assert step(moving(there=2, web=web, others=1)) is None
    state = moving(there=2, web=web)
    api = replace(state.services["api"], moves=[0])
    assert step(replace(state, services={**state.services, "api": api})) is None


def test_the_end_of_an_instance_on_a_host_that_takes_no_slots_makes_no_room() -> None:
    state = rolling({0: old(0)}, target=1, room=1)
    assert step(state) is not None
    assert step(replace(state, orders={"box-a": HostOrder()})) is None
    assert step(replace(state, hosts={"box-a": host(room=1, ready=False)})) is None


# ── leaving a host ───────────────────────────────────────────────────────────────────────


def drained(*, room: int = 10, fixed_port: int = 0, forced: bool = False) -> FleetState:
    """One instance on box-a, which is being drained; box-b has `room`."""
    hosts = {name: host(fixed_port=fixed_port) for name in ("box-a", "box-b")}
    hosts["box-b"] = replace(hosts["box-b"], max_instances=room)
    state = fleet(
        hosts=hosts,
        services={"web": ServiceRecord(target=1, slots=[0])},
        slots={"web": {0: slot("web", 0)}},
    )
    return replace(state, orders={"box-a": HostOrder(draining=True, forced=forced)})


def test_with_a_fixed_port_too_an_instance_leaves_a_drained_host_after_its_replacement() -> None:
    after = step(drained(fixed_port=8080))
    assert after is not None
    assert after.slots == [0, 1]


def test_promises_to_services_that_run_elsewhere_do_not_hold_a_drain_up() -> None:
    state = drained(room=2)
    api = ServiceRecord(target=9, slots=list(range(9)))
    elsewhere = {n: slot("api", n, on="box-c") for n in range(9)}
    state = replace(
        state,
        hosts={**state.hosts, "box-c": host("api", room=9)},
        services={**state.services, "api": api},
        slots={**state.slots, "api": elsewhere},
    )
    after = step(state)
    assert after is not None
    assert after.slots == [0, 1]


def test_without_room_elsewhere_an_instance_leaves_only_if_forced() -> None:
    full = {"api": {0: slot("api", 0, on="box-b")}}
    for forced, slots in ((False, None), (True, [1])):
        state = drained(room=1, forced=forced)
        claims = {**state.slots, **full}
        after = step(replace(state, slots=claims, used={"box-a": 1, "box-b": 1}))
        assert (after.slots if after else None) == slots


def test_a_drain_that_is_called_off_gives_up_the_extra_slot_and_first_one_that_serves_not() -> None:
    record = ServiceRecord(target=1, slots=[0, 1], rollout=Rollout(config=OLD_ID))
    for claims, kept in (
        ({0: old(0), 1: old(1, S.BOOTING)}, [0]),
        ({0: old(0)}, [0]),
        ({0: old(0, S.BUSY), 1: old(1)}, [0]),
        ({0: old(0, S.CREATING), 1: old(1, S.BOOTING)}, [1]),
    ):
        after = step(fleet(services={"web": record}, slots={"web": claims}))
        assert after is not None
        assert (after.slots, after.rollout) == (kept, None)


def test_an_unreadable_slot_is_not_given_up_as_idle() -> None:
    record = ServiceRecord(target=1, slots=[0, 1], rollout=Rollout(config=OLD_ID))
    claims = {"web": {0: old(0, S.BUSY)}}
    after = step(fleet(services={"web": record}, slots=claims, unreadable={"web": {1}}))
    assert after is not None
    assert after.slots == [1]


def test_a_stopped_rollout_can_be_resumed_and_others_need_not_be() -> None:
    state = rolling({0: old(0)}, target=1, rollout_=Rollout(config=NEW_ID, stopped="why"))
    resumed = rollout.resume("web", state, "the drain of box-a", at=AT, host="box-a")
    assert resumed is not None
    assert resumed.rollout == Rollout(config=NEW_ID)
    assert resumed.decision is not None
    assert resumed.decision.error == "rollout: goes on for the drain of box-a"
    again = replace(state, services={"web": resumed})
    assert rollout.resume("web", again, "", at=AT, host="box-a") is None
    assert step(again) is not None
