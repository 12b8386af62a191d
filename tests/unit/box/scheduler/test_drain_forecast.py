"""Whether a host can be emptied, as the fleet stands."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from bridge.box.scheduler.drain_forecast import DrainForecast, room_lacking
from bridge.box.scheduler.placement import HostRoom, Placement, able_hosts
from bridge.box.scheduler.planner import EXCLUSION
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.records import Avoidance, Demand, HostOrder, HostRecord, Offer, ServiceRecord
from tests.unit.fleets import AT, fleet, fleets, host, slot

DRAINING = HostOrder(draining=True)


def three(*counts: int, room: int = 4, pending: int = 0) -> FleetState:
    """So many instances of web on box-a, box-b and box-c, and so many that are on none."""
    names = ("box-a", "box-b", "box-c")
    places = [name for name, count in zip(names, counts, strict=True) for _ in range(count)]
    members = list(range(len(places) + pending))
    return fleet(
        hosts={name: host("web", "api", room=room) for name in names},
        services={"web": ServiceRecord(target=len(members), slots=members)},
        slots={"web": {n: slot("web", n, on=name) for n, name in enumerate(places)}},
    )


def offering(state: FleetState, **changed: Offer) -> dict[str, HostRecord]:
    return {
        name: replace(item, services={**item.services, **changed})
        for name, item in state.hosts.items()
    }


def test_a_host_can_be_emptied_if_the_others_have_room_and_the_lack_is_counted_otherwise() -> None:
    assert room_lacking("box-a", three(3, 3, 2), at=AT) == {}
    assert room_lacking("box-a", three(3, 3, 3), at=AT) == {"web": 1}
    assert room_lacking("box-a", three(4, 4, 4), at=AT) == {"web": 4}
    assert room_lacking("box-x", three(4, 4, 4), at=AT) == {}


def test_slots_without_a_host_and_instances_leaving_other_hosts_need_room_as_well() -> None:
    assert room_lacking("box-a", three(3, 3, 1, pending=1), at=AT) == {}
    assert room_lacking("box-a", three(3, 3, 1, pending=2), at=AT) == {"web": 1}
    assert room_lacking("box-a", replace(three(3, 1, 2), orders={"box-b": DRAINING}), at=AT) == {
        "web": 2
    }


def test_an_instance_with_a_replacement_needs_no_room() -> None:
    state = replace(three(2, 3, 3), orders={"box-a": DRAINING})
    web = ServiceRecord(target=8, slots=list(range(9)))
    waiting = replace(state, services={"web": web})
    assert room_lacking("box-a", waiting, at=AT) == {}
    claims = {**state.slots["web"], 8: slot("web", 8, on="box-c")}
    made = fleet(hosts=dict(state.hosts), services={"web": web}, slots={"web": claims})
    assert room_lacking("box-a", replace(made, orders=state.orders), at=AT) == {}
    last = fleet(
        hosts=dict(state.hosts),
        slots={"web": {0: slot("web", 0), 1: slot("web", 1, on="box-c")}},
        services={"web": ServiceRecord(target=1, slots=[0, 1])},
    )
    assert room_lacking("box-a", last, at=AT) == {}
    full = replace(three(2, 4, 3), orders=state.orders)
    web = ServiceRecord(target=9, slots=list(range(10)))
    assert room_lacking("box-a", replace(full, services={"web": web}), at=AT) == {"web": 1}


def test_slots_of_a_dead_host_without_room_elsewhere_are_counted() -> None:
    state = three(3, 3, 3)
    there = {name: item for name, item in state.hosts.items() if name != "box-a"}
    dead = replace(state, hosts=there, dead={"box-a"}, orders={"box-a": DRAINING})
    assert room_lacking("box-a", dead, at=AT) == {"web": 1}
    assert room_lacking("box-a", replace(dead, slots={}, used={}), at=AT) == {}


def test_a_cordoned_or_leaving_host_has_no_room() -> None:
    state = three(1, 0, 0)
    assert room_lacking("box-a", replace(state, orders={"box-b": HostOrder()}), at=AT) == {}
    both = {"box-b": HostOrder(), "box-c": HostOrder()}
    assert room_lacking("box-a", replace(state, orders=both), at=AT) == {"web": 1}
    gone = {"box-a": state.hosts["box-a"], "box-b": replace(state.hosts["box-b"], closing=True)}
    assert room_lacking("box-a", replace(state, hosts=gone), at=AT) == {"web": 1}


def test_labels_and_fixed_ports_count() -> None:
    state = three(1, 1, 0)
    port = Offer(fixed_port=8080)
    assert room_lacking("box-a", replace(state, hosts=offering(state, web=port)), at=AT) == {}
    full = three(1, 1, 1)
    assert room_lacking("box-a", replace(full, hosts=offering(full, web=port)), at=AT) == {"web": 1}
    needy = offering(state, web=Offer(needs={"zone": "a"}))
    assert room_lacking("box-a", replace(state, hosts=needy), at=AT) == {"web": 1}
    needy["box-c"] = replace(needy["box-c"], labels={"zone": "a"})
    assert room_lacking("box-a", replace(state, hosts=needy), at=AT) == {}


def test_the_services_that_few_hosts_can_run_choose_first() -> None:
    hosts = {
        "box-a": host("api", "web"),
        "box-b": host("api", "web", room=1),
        "box-c": host("api", room=1),
    }
    one = ServiceRecord(target=1, slots=[0])
    claims = {"api": {0: slot("api", 0)}, "web": {0: slot("web", 0)}}
    state = fleet(hosts=hosts, services={"api": one, "web": one}, slots=claims)
    assert room_lacking("box-a", state, at=AT) == {}


def test_an_instance_that_moves_gets_a_new_slot_without_exclusions() -> None:
    hosts = {"box-a": host("web"), "box-b": host("web")}
    off = [Avoidance(slot=0, host="box-b", until=AT + EXCLUSION)]
    record = ServiceRecord(target=1, slots=[0], avoid=off)
    held = fleet(hosts=hosts, services={"web": record}, slots={"web": {0: slot("web", 0)}})
    assert room_lacking("box-a", held, at=AT) == {}
    both = replace(
        held,
        hosts={**hosts, "box-c": host("web")},
        services={"web": replace(record, target=2, slots=[0, 1])},
        slots={"web": {0: slot("web", 0, on="box-c"), 1: slot("web", 1)}},
        orders={"box-c": DRAINING},
    )
    assert room_lacking("box-a", both, at=AT) == {}


def test_instances_without_a_readable_record_cannot_be_moved() -> None:
    assert room_lacking("box-a", fleet(slots={"web": {0: slot("web", 0)}}), at=AT) == {"web": 1}


@given(fleets())
def test_the_forecast_never_promises_more_than_the_room(state: FleetState) -> None:
    short = room_lacking("box-a", state, at=AT)
    there = [
        claim
        for service, record in state.services.items()
        for number, claim in state.slots_of(service).items()
        if number in record.slots and claim.host == "box-a"
    ]
    room = sum(
        max(0, item.max_instances - state.used.get(name, 0))
        for name, item in state.hosts.items()
        if name != "box-a" and not item.closing
    )
    known = sum(count for service, count in short.items() if service in state.services)
    assert len(there) - known <= room


ORDERS = (None, HostOrder(), DRAINING)
OFFERS = (Offer(), Offer(fixed_port=8080), Offer(demand=Demand(vcpus=2)))


@st.composite
def drained_fleets(draw: st.DrawFn) -> FleetState:
    """Fleets with orders for some of the hosts, dead ones among them."""
    state = draw(fleets())
    orders = {name: draw(st.sampled_from(ORDERS)) for name in (*state.hosts, "box-gone")}
    offer = draw(st.sampled_from(OFFERS))
    return replace(
        state,
        hosts=offering(state, web=offer) if draw(st.booleans()) else state.hosts,
        orders={name: order for name, order in orders.items() if order is not None},
        dead=draw(st.sampled_from([frozenset(), frozenset({"box-gone"})])),
    )


def of_one(host: str, fleet: FleetState) -> dict[str, int]:
    """The reference: a forecast for one host alone, for which what is on it is placed last."""
    spare, found = HostRoom(fleet), dict[str, int]()
    order = {name: len(able_hosts(name, fleet, fleet.services[name])[0]) for name in fleet.services}
    for service in sorted(order, key=lambda name: (order[name], name)):
        tally, orphans = fleet.service_slots(service), fleet.orphans(service)
        there = tally.on(host) & tally.wanted
        mine = there - orphans
        leaving = set[int]().union(*map(tally.on, fleet.draining())) & tally.wanted
        first = fleet.vacant(service) | (leaving - orphans - mine)
        board = Placement(service, fleet, fleet.services[service], spare)
        placed = board.place(sorted(first), {}) | board.place(sorted(mine), {})
        if short := min(len(first) + len(mine) - len(placed), len(there)):
            found[service] = short
    housed = fleet.slot_counts(host).items()
    return found | {name: count for name, count in housed if name not in fleet.services}


@given(drained_fleets())
def test_one_forecast_equals_a_separate_forecast_for_each_host(state: FleetState) -> None:
    forecast = DrainForecast(state, at=AT)
    for name in state.draining():
        assert forecast.short(name) == room_lacking(name, state, at=AT) == of_one(name, state)
