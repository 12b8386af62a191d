"""What is kept sorted is what sorting it anew would give, whatever changed and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from bridge.box.scheduler.planner import plan
from bridge.box.scheduler.rollout import next_step, outdated
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.records import HostIdentity, HostOrder, HostRecord, ServiceRecord, SlotRecord
from bridge.box.state.slot_index import ServiceSlots, SlotIndex
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


class Ledger:
    """A fleet that changes, with a census kept beside it."""

    def __init__(self) -> None:
        self.services: dict[str, ServiceRecord] = {}
        self.slots: dict[str, dict[int, SlotRecord]] = {}
        self.hosts: dict[str, HostRecord] = {}
        self.dead: set[str] = set()
        self.slot_index = SlotIndex(self.services, self.slots, self.hosts, self.dead)
        self.state = FleetState(
            services=self.services,
            slots=self.slots,
            hosts=self.hosts,
            dead=self.dead,
            orders={"box-b": HostOrder(draining=True)},
            slot_index=self.slot_index,
        )

    def apply(self, kind: str, name: str, value: object) -> None:
        match kind, value:
            case "service", ServiceRecord() | None as record:
                _put(self.services, name, record)
                self.slot_index.service_changed(name)
            case "slot", (int() as number, SlotRecord() | None as claim):
                there = self.slots.setdefault(name, {})
                before = there.get(number)
                _put(there, number, claim)
                self.slot_index.slot_changed(name, number, before, claim)
            case "host", HostRecord() | None as record:
                _put(self.hosts, name, record)
                self.slot_index.hosts_changed([name])
            case _:
                (self.dead.add if value else self.dead.discard)(name)
                self.slot_index.hosts_changed([name])


def _put(mapping: dict, key: object, value: object) -> None:  # type: ignore[type-arg]
    if value is None:
        mapping.pop(key, None)
    else:
        mapping[key] = value


def told(tally: ServiceSlots) -> dict[str, object]:
    return vars(tally)


@given(st.lists(changes, max_size=30))
def test_a_census_that_was_kept_says_what_one_made_anew_says(run: list[Change]) -> None:
    kept = Ledger()
    for change in run:
        kept.apply(*change)
    plain = replace(kept.state, slot_index=None)
    for service in SERVICES:
        assert told(kept.state.service_slots(service)) == told(plain.service_slots(service))
        assert kept.state.orphans(service) == plain.orphans(service)
        assert kept.state.vacant(service) == plain.vacant(service)
    for name in HOSTS:
        assert kept.state.slot_counts(name) == plain.slot_counts(name)


@given(st.lists(changes, max_size=30), st.sampled_from(["box-a", "box-b"]))
def test_plans_and_steps_are_the_same_with_a_census_and_without(
    run: list[Change], name: str
) -> None:
    kept = Ledger()
    for change in run:
        kept.apply(*change)
    plain = replace(kept.state, slot_index=None)
    me = HostIdentity(host=name, host_id="id")
    for service in SERVICES:
        plans = [plan(service, state, me, {}, now=0, at=AT) for state in (kept.state, plain)]
        assert plans[0] == plans[1]
        if service in kept.services:
            steps = [next_step(service, state, at=AT, host=name) for state in (kept.state, plain)]
            assert steps[0] == steps[1]


@given(fleets())
def test_a_tally_is_what_the_records_say(state: FleetState) -> None:
    for service, record in state.services.items():
        claims, tally = state.slots_of(service), state.service_slots(service)
        assert tally.free == set(record.slots) - claims.keys()
        assert tally.outside == claims.keys() - set(record.slots)
        assert tally.unready == {
            number
            for number in record.slots
            if number not in claims
            or claims[number].info.state not in (InstanceState.READY, InstanceState.BUSY)
        }
        assert {n for who in tally.held.values() for n in who} == claims.keys()
        assert state.orphans(service) == {n for n in claims if state.is_orphan(claims[n])}


@given(st.lists(changes, max_size=30))
def test_whoever_waits_for_room_is_planned_anew_when_room_comes(run: list[Change]) -> None:
    kept = Ledger()
    for change in run:
        kept.apply(*change)
    state = kept.state
    touched = kept.slot_index.affected_by_room(state.draining())
    for service in state.services:
        if state.vacant(service) or outdated(service, state):
            assert service in touched


class Counting(Mapping[int, SlotRecord]):
    """Claims that count how many of them were looked at."""

    def __init__(self, claims: Mapping[int, SlotRecord]) -> None:
        self._claims = claims
        self.looks = 0

    def __getitem__(self, number: int) -> SlotRecord:
        self.looks += 1
        return self._claims[number]

    def __iter__(self) -> Iterator[int]:
        for number in self._claims:
            self.looks += 1
            yield number

    def __len__(self) -> int:
        return len(self._claims)


def test_a_plan_looks_at_no_more_records_in_a_large_service_than_in_a_small_one() -> None:
    found = []
    for size in (10, 10_000):
        kept = Ledger()
        kept.state = replace(kept.state, orders={})
        kept.apply("host", "box-a", host(room=20_000))
        kept.apply("host", "box-b", host(room=20_000))
        kept.apply("service", "web", ServiceRecord(target=size, slots=list(range(size))))
        for number in range(1, size):
            kept.apply("slot", "web", (number, slot("web", number, on="box-b")))
        assert kept.state.vacant("web") == {0}
        claims = Counting(kept.slots["web"])
        counted = replace(kept.state, slots={"web": claims})
        assert plan("web", counted, HostIdentity(host="box-a", host_id="id"), {}, now=0, at=AT)
        assert next_step("web", counted, at=AT, host="box-a") is None
        found.append(claims.looks)
    assert found[0] == found[1] <= 5
