"""An index that takes over each change equals a new one, whatever changed in which order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from bridge.box.scheduler.planner import plan
from bridge.box.scheduler.rollout import next_step, outdated
from bridge.box.state.fleet_index import FleetIndex
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.records import HostIdentity, HostOrder, HostRecord, ServiceRecord, SlotRecord
from bridge.protocol import InstanceState, ScaleConfig
from tests.unit.fleets import AT, SERVICES, fleets, host, slot

HOSTS = ("box-a", "box-b", "box-gone")
CONFIGS = (ScaleConfig(), ScaleConfig(env={"A": "1"}))
Change = tuple[str, str, object]


@st.composite
def slots(draw: st.DrawFn) -> SlotRecord:
    """A claim by anyone of an instance in any state, made with any config."""
    claim = slot(
        "web",
        draw(st.integers(0, 3)),
        draw(st.sampled_from(InstanceState)),
        on=draw(st.sampled_from(HOSTS)),
        config=ServiceRecord(config=draw(st.sampled_from(CONFIGS))).config_id,
    )
    return replace(claim, host_id=draw(st.sampled_from(["id", "earlier"])))


records = st.builds(
    lambda members, config, moves: ServiceRecord(
        target=len(members), slots=sorted(members), config=config, moves=moves
    ),
    st.lists(st.integers(0, 5), unique=True, max_size=4),
    st.sampled_from(CONFIGS),
    st.sampled_from([[], [], [1]]),
)
changes = st.one_of(
    st.tuples(st.just("service"), st.sampled_from(SERVICES), st.none() | records),
    st.tuples(
        st.just("slot"),
        st.sampled_from(SERVICES),
        st.tuples(st.integers(0, 5), st.none() | slots()),
    ),
    st.tuples(
        st.just("host"),
        st.sampled_from(HOSTS),
        st.sampled_from([None, host(), replace(host(), host_id="earlier")]),
    ),
    st.tuples(st.just("dead"), st.sampled_from(HOSTS), st.booleans()),
)


class ChangingFleet:
    """A fleet that changes, whose index takes over each change."""

    def __init__(self, *, draining: bool = True) -> None:
        self.index = FleetIndex()
        self.index.set_order("box-b", HostOrder(draining=True) if draining else None)
        self.dead: set[str] = set()

    @property
    def state(self) -> FleetState:
        return self.index.state

    def unindexed(self) -> FleetState:
        """The same fleet in other mappings: it makes an index of its own."""
        return replace(self.state, services=dict(self.state.services))

    def apply(self, kind: str, name: str, value: object) -> None:
        match kind, value:
            case "service", ServiceRecord() | None as record:
                self.index.set_service(name, record)
            case "slot", (int() as number, SlotRecord() | None as claim):
                self.index.set_slot(name, number, claim)
            case "host", HostRecord() | None as record:
                self.index.set_host(name, record)
            case _:
                (self.dead.add if value else self.dead.discard)(name)
                self.index.set_dead(self.dead)


def changed(run: list[Change]) -> ChangingFleet:
    fleet = ChangingFleet()
    for change in run:
        fleet.apply(*change)
    return fleet


def clean(counts: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in counts.items() if value}


@given(st.lists(changes, max_size=30))
def test_an_index_that_took_over_each_change_equals_a_new_one(run: list[Change]) -> None:
    fleet = changed(run)
    current, fresh = fleet.state.slot_index, fleet.unindexed().slot_index
    assert current is not fresh
    for service in SERVICES:
        kept, new = (state.service_slots(service) for state in (fleet.state, fleet.unindexed()))
        assert vars(kept) == vars(new)
    assert clean(current.offers) == clean(fresh.offers)
    assert clean(current.slot_counts) == clean(fresh.slot_counts)
    assert current.dead_holders == fresh.dead_holders
    assert current.unsettled == fresh.unsettled


@given(st.lists(changes, max_size=30), st.sampled_from(SERVICES), records)
def test_an_index_with_one_other_record_equals_a_new_one_and_leaves_the_first_as_it_is(
    run: list[Change], service: str, record: ServiceRecord
) -> None:
    state = changed(run).state
    before = {name: dict(vars(state.service_slots(name))) for name in SERVICES}
    services = {**state.services, service: record}
    index = state.slot_index.with_services(services, service)
    other = replace(state, services=services, slot_index=index)
    assert other.slot_index is index
    for name in SERVICES:
        fresh = replace(state, services=dict(services)).service_slots(name)
        assert vars(other.service_slots(name)) == vars(fresh)
        assert vars(state.service_slots(name)) == before[name]


@given(fleets())
def test_the_slots_of_a_service_are_what_its_records_say(state: FleetState) -> None:
    for service, record in state.services.items():
        claims, slots = state.slots_of(service), state.service_slots(service)
        assert slots.free == set(record.slots) - claims.keys()
        assert slots.outside == claims.keys() - set(record.slots)
        assert slots.unready == {
            number
            for number in record.slots
            if number not in claims
            or claims[number].info.state not in (InstanceState.READY, InstanceState.BUSY)
        }
        assert {n for claimed in slots.by_holder.values() for n in claimed} == claims.keys()
        assert state.orphans(service) == {n for n in claims if state.is_orphan(claims[n])}


@given(st.lists(changes, max_size=30))
def test_a_service_that_waits_for_room_is_planned_again_when_there_is_room(
    run: list[Change],
) -> None:
    fleet = changed(run)
    affected = fleet.index.services_affected_by_room()
    for service in fleet.state.services:
        if fleet.state.vacant(service) or outdated(service, fleet.state):
            assert service in affected


class Counting(dict[int, SlotRecord]):
    """Claims that count how many of them were looked at."""

    looks = 0

    def __getitem__(self, number: int) -> SlotRecord:
        self.looks += 1
        return super().__getitem__(number)

    def get(self, number: int, default: Any = None) -> Any:
        self.looks += 1
        return super().get(number, default)

    def items(self) -> Any:
        self.looks += len(self)
        return super().items()

    def values(self) -> Any:
        self.looks += len(self)
        return super().values()

    def __iter__(self) -> Iterator[int]:
        self.looks += len(self)
        return super().__iter__()


def test_a_plan_looks_at_no_more_records_in_a_large_service_than_in_a_small_one() -> None:
    looks = []
    for size in (10, 10_000):
        fleet = ChangingFleet(draining=False)
        claims = fleet.index._slots["web"] = Counting()
        fleet.apply("host", "box-a", host(room=20_000))
        fleet.apply("host", "box-b", host(room=20_000))
        fleet.apply("service", "web", ServiceRecord(target=size, slots=list(range(size))))
        for number in range(1, size):
            fleet.apply("slot", "web", (number, slot("web", number, on="box-b")))
        assert fleet.state.vacant("web") == {0}
        claims.looks = 0
        me = HostIdentity(host="box-a", host_id="id")
        assert plan("web", fleet.state, me, {}, now=0, at=AT)
        assert next_step("web", fleet.state, at=AT, host="box-a") is None
        looks.append(claims.looks)
    assert looks[0] == looks[1] <= 5
