"""Which instances move when the hosts are to be evened out: the fewest, and by all the rules."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from bridge.admin_protocol import Move
from bridge.box.scheduler.placement import HostRoom, Placement, able_hosts
from bridge.box.scheduler.rebalance import MAX_MOVES, balance, with_moves
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.records import (
    Decision,
    Demand,
    HostOrder,
    HostRecord,
    Offer,
    Rollout,
    ServiceRecord,
    SlotRecord,
)
from bridge.protocol import InstanceState
from tests.unit.fleets import AT, SERVICES, fleet, host, slot

NOW = Decision(at=AT, host="box-a", replicas=0, request_id="r")


def spread(rooms: dict[str, HostRecord], **counts: list[int]) -> FleetState:
    """A fleet in which service and host have so many instances: ``web=[3, 0]``."""
    slots: dict[str, dict[int, SlotRecord]] = {}
    for service, numbers in counts.items():
        places = [name for name, count in zip(rooms, numbers, strict=True) for _ in range(count)]
        slots[service] = {n: slot(service, n, on=name) for n, name in enumerate(places)}
    services = {
        service: ServiceRecord(target=len(claims), slots=sorted(claims))
        for service, claims in slots.items()
    }
    return fleet(hosts=rooms, services=services, slots=slots)


def two() -> dict[str, HostRecord]:
    return {name: host("web", "api") for name in ("box-a", "box-b")}


def made(state: FleetState, moves: list[Move]) -> FleetState:
    """The fleet once the moves are made."""
    slots = {service: dict(claims) for service, claims in state.slots.items()}
    for move in moves:
        slots[move.service][move.slot] = replace(slots[move.service][move.slot], host=move.target)
    return fleet(hosts=dict(state.hosts), services=dict(state.services), slots=slots)


def pairs(moves: list[Move]) -> list[tuple[str, str, str]]:
    return [(move.service, move.source, move.target) for move in moves]


def test_a_new_host_gets_only_its_share() -> None:
    found = balance(spread(two(), web=[5, 0]))
    assert pairs(found.moves) == [("web", "box-a", "box-b")] * 2
    assert (found.waiting, found.more) == ({}, False)
    assert balance(spread(two(), web=[3, 2])).moves == []


def test_the_idlest_instance_of_a_hosts_most_common_service_moves() -> None:
    state = spread(two(), web=[3, 0], api=[1, 0])
    busy = replace(state.slots["web"][0], info=slot("web", 0, InstanceState.BUSY).info)
    state = replace(state, slots={**state.slots, "web": {**state.slots["web"], 0: busy}})
    moves = balance(state).moves
    assert pairs(moves) == [("web", "box-a", "box-b")] * 2
    assert {move.slot for move in moves} == {1, 2}


def test_with_a_service_given_only_that_one_moves() -> None:
    assert pairs(balance(spread(two(), web=[3, 0], api=[1, 0]), only="api").moves) == [
        ("api", "box-a", "box-b")
    ]


def test_labels_and_fixed_ports_are_respected() -> None:
    needy = Offer(needs={"zone": "a"})
    hosts = two()
    hosts["box-a"] = replace(hosts["box-a"], labels={"zone": "a"})
    hosts = {
        name: replace(item, services={"web": needy, "api": Offer(fixed_port=8080)})
        for name, item in hosts.items()
    }
    assert balance(spread(hosts, web=[4, 0])).moves == []
    assert pairs(balance(spread(hosts, web=[4, 0], api=[1, 0])).moves) == [
        ("api", "box-a", "box-b")
    ]
    assert balance(spread(hosts, web=[4, 0], api=[1, 1])).moves == []


@pytest.mark.parametrize("memory", [(8000, 500), (500, 500)])
def test_an_instance_never_moves_to_a_host_without_its_demand(memory: tuple[int, int]) -> None:
    offer = {"web": Offer(demand=Demand(memory_mib=600))}
    hosts = {
        name: replace(item, services=offer, memory_mib=size)
        for (name, item), size in zip(two().items(), memory, strict=True)
    }
    assert balance(spread(hosts, web=[4, 0])).moves == []


def test_hosts_under_an_order_not_ready_or_about_to_leave_neither_give_nor_get() -> None:
    state = spread(two(), web=[4, 0])
    for name in ("box-a", "box-b"):
        assert balance(replace(state, orders={name: HostOrder()})).moves == []
        there = state.hosts[name]
        for other in (replace(there, closing=True), replace(there, ready=False)):
            assert balance(replace(state, hosts={**state.hosts, name: other})).moves == []


def test_a_service_with_a_rollout_is_left_out_and_named() -> None:
    state = spread(two(), web=[4, 0])
    web = state.services["web"]
    moving = replace(web, moves=[0])
    stopped = replace(web, rollout=Rollout(config=web.config_id, stopped="rollout stopped: why"))
    for record, why in ((moving, "being replaced already"), (stopped, "rollout stopped: why")):
        busy = replace(state, services={"web": record})
        found = balance(busy)
        assert found.moves == []
        assert why in found.waiting["web"]
        assert with_moves("web", busy, balance(state).moves, NOW) is None


def test_one_decision_makes_a_bounded_number_of_moves_and_reports_that_more_remain() -> None:
    hosts = {name: host("web", room=2000) for name in ("box-a", "box-b")}
    found = balance(spread(hosts, web=[2 * MAX_MOVES + 2, 0]))
    assert (len(found.moves), found.more) == (MAX_MOVES, True)
    exact = balance(spread(hosts, web=[2 * MAX_MOVES, 0]))
    assert (len(exact.moves), exact.more) == (MAX_MOVES, False)


def test_the_record_gets_only_moves_that_are_still_valid() -> None:
    state = spread(two(), web=[4, 0])
    moves = balance(state).moves
    record = with_moves("web", state, moves, NOW)
    assert record is not None
    assert record.moves == sorted(move.slot for move in moves)
    assert record.version == 1
    assert record.decision is not None
    assert (record.decision.request_id, record.decision.replicas) == ("r", 4)
    replaced = {**state.slots["web"], moves[0].slot: slot("web", 9)}  # another instance is there
    changed = with_moves("web", replace(state, slots={"web": replaced}), moves, NOW)
    assert changed is not None
    assert changed.moves == [move.slot for move in moves[1:]]
    assert with_moves("web", fleet(), moves, NOW) is None


def test_an_instance_that_others_would_push_on_goes_straight_to_where_it_ends() -> None:
    zoned = {"web": Offer(), "api": Offer(needs={"zone": "a"}), "jobs": Offer(needs={"zone": "a"})}
    rooms = {"box-a": (1, "a"), "box-b": (5, "b"), "box-c": (3, "a"), "box-d": (8, "a")}
    hosts = {
        name: replace(host(room=room), services=zoned, labels={"zone": zone})
        for name, (room, zone) in rooms.items()
    }
    state = spread(hosts, web=[1, 2, 0, 0], api=[0, 0, 3, 0], jobs=[0, 0, 0, 5])
    moves = balance(state).moves
    assert len({(move.service, move.slot) for move in moves}) == len(moves)
    assert ("web", "box-a", "box-b") in pairs(moves)
    assert balance(made(state, moves)).moves == []


@st.composite
def uneven(draw: st.DrawFn) -> FleetState:
    """A fleet of which no host has more than it may, with labels and fixed ports."""
    names = [f"box-{letter}" for letter in "abcde"[: draw(st.integers(1, 5))]]
    offers = {
        service: Offer(
            fixed_port=draw(st.sampled_from([0, 0, 8080])),
            needs=draw(st.sampled_from([{}, {}, {"zone": "a"}])),
        )
        for service in SERVICES
    }
    hosts = {
        name: replace(
            host(room=draw(st.integers(1, 8))),
            services=offers,
            labels={"zone": draw(st.sampled_from("ab"))},
        )
        for name in names
    }
    state = fleet(hosts=hosts)
    slots: dict[str, dict[int, SlotRecord]] = {}
    for service in SERVICES:
        record = ServiceRecord()
        board = Placement(service, state, record, HostRoom(fleet(hosts=hosts, slots=slots)))
        able = sorted(able_hosts(service, state, record)[0])
        claims: dict[int, SlotRecord] = {}
        for number in range(draw(st.integers(0, 10))):
            fit = [name for name in able if board.left(name) > 0]
            if fit:
                name = draw(st.sampled_from(fit))
                board.take(name)
                claims[number] = slot(service, number, on=name)
        slots[service] = claims
    services = {
        service: ServiceRecord(target=len(claims), slots=sorted(claims))
        for service, claims in slots.items()
    }
    return fleet(hosts=hosts, services=services, slots=slots)


@given(uneven())
def test_a_rebalance_ends_even_and_moves_no_instance_twice(state: FleetState) -> None:
    moves = balance(state).moves
    assert len({(move.service, move.slot) for move in moves}) == len(moves)
    after = made(state, moves)
    assert balance(after).moves == [], "and there is nothing left to do"
    for name, item in after.hosts.items():
        assert after.used.get(name, 0) <= item.max_instances
    for service, claims in after.slots.items():
        offer = state.hosts["box-a"].services[service]
        there = Counter(claim.host for claim in claims.values())
        assert not offer.fixed_port or max(there.values(), default=0) <= 1
        for number, claim in claims.items():
            moved = claim.host != state.slots[service][number].host
            labels = after.hosts[claim.host].labels
            assert not moved or offer.needs.items() <= labels.items()
    for service, claims in after.slots.items():
        board = Placement(service, after, after.services[service], HostRoom(after))
        for claim in claims.values():
            target = board.best()
            gap = board.left(target) - board.left(claim.host) if target else 0
            fixed = state.hosts["box-a"].services[service].fixed_port
            assert fixed or gap < 2, "no move is left that would help"


@given(st.integers(2, 5).flatmap(lambda n: st.lists(st.integers(0, 9), min_size=n, max_size=n)))
def test_it_never_moves_more_than_evening_out_takes(counts: list[int]) -> None:
    hosts = {f"box-{n}": host("web", room=9) for n in range(len(counts))}
    state = spread(hosts, web=counts)
    moves = balance(state).moves
    level, rest = divmod(sum(counts), len(counts))
    shares = sorted(counts, reverse=True)
    wanted = [level + (number < rest) for number in range(len(counts))]
    needed = sum(max(0, have - want) for have, want in zip(shares, wanted, strict=True))
    assert len(moves) == needed
    after = made(state, moves)
    left = [9 - after.used.get(name, 0) for name in hosts]
    assert max(left) - min(left) <= 1
