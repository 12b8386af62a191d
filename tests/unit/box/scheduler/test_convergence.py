"""Planner, rollout and authority together, over random fleets and without time: all hosts plan in
turn and act, until there is nothing left to do.

A round is: each instance takes one step (it is Ready, or has ended), each host carries out its plan
for each service, and the step of each rollout is taken.
"""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from bridge.box.scheduler.admission import AdmissionRequest, decide
from bridge.box.scheduler.placement import place
from bridge.box.scheduler.planner import (
    Claim,
    Discard,
    Drain,
    GiveUp,
    LocalInstance,
    Make,
    Release,
    plan,
)
from bridge.box.scheduler.rollout import next_step, outdated
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.lifecycle import ENDED, SERVING
from bridge.box.state.records import (
    HostIdentity,
    HostOrder,
    HostRecord,
    Offer,
    ServiceRecord,
    SlotRecord,
)
from bridge.protocol import InstanceState, ScaleConfig
from tests.unit.fleets import AT, SERVICES, admission_request, fleet, host, slot

S = InstanceState
NAMES = ("box-a", "box-b", "box-c", "box-d")
NEW = ScaleConfig(env={"A": "1"})

SETTLING = 6
"""Rounds without a rollout: what must go drains (1), has ended and is let go (2), what that made
room for is claimed (3), and by others than whose turn had passed (4), is Ready (5), and nothing is
left to do (6)."""

A_REPLACEMENT = 5
"""Rounds for each instance that is replaced: an extra slot joins the set (1), is claimed (2), Ready
(3), the outdated one drains (4), and lets its room go (5)."""


class Rounds:
    """A fleet in which all plans are carried out, and what it has seen of breaches."""

    def __init__(self, state: FleetState) -> None:
        self.services = dict(state.services)
        self.hosts = dict(state.hosts)
        self.slots = {name: dict(claims) for name, claims in state.slots.items()}
        self.orders = dict(state.orders)
        self.dead = {"box-gone"}
        self.leaving: set[str] = set()
        self._made = 0

    def __repr__(self) -> str:
        return f"{self.services} {self.slots} {self.hosts} {self.orders}"

    @property
    def state(self) -> FleetState:
        built = fleet(hosts=self.hosts, services=self.services, slots=self.slots)
        return replace(built, orders=self.orders, dead=self.dead)

    def locals(self, name: str, service: str) -> dict[int, LocalInstance]:
        """What the host has in its slots: an instance for each of its claims."""
        return {
            number: LocalInstance(
                ended=claim.info.state in ENDED, leaving=claim.info.id in self.leaving
            )
            for number, claim in self.slots.get(service, {}).items()
            if claim.host == name
        }

    def round(self) -> bool:
        """Whether anything was done."""
        busy = self._live()
        for name in sorted(self.hosts):
            for service in sorted(self.services):
                actions = plan(
                    service,
                    self.state,
                    HostIdentity(host=name, host_id="id"),
                    self.locals(name, service),
                    now=0,
                    at=AT,
                )
                for action in actions:
                    busy = True
                    self._act(service, name, action)
        for service in sorted(self.services):
            if (step := next_step(service, self.state, at=AT, host="box-a")) is not None:
                busy = True
                self.services[service] = step
        return busy

    def _live(self) -> bool:
        busy = False
        for claims in self.slots.values():
            for number, claim in claims.items():
                state = claim.info.state
                if claim.host not in self.hosts or state in ENDED:
                    continue
                leaving = claim.info.id in self.leaving
                after = S.STOPPED if leaving else S.READY
                if leaving or state not in SERVING:
                    claims[number] = replace(claim, info=replace(claim.info, state=after))
                    busy = True
        return busy

    def _act(self, service: str, name: str, action: object) -> None:
        claims = self.slots.setdefault(service, {})
        there = self.hosts[name]
        match action:
            case Claim(slot=number):
                taken = claims.get(number)
                assert taken is None or taken.host not in self.hosts, "one owner a slot"
                assert self.state.used.get(name, 0) < there.max_instances, "no claim beyond room"
                assert service in there.services
                assert not there.closing
                assert name not in self.orders
                claims[number] = self._new(service, number, name)
            case Make(slot=number):
                assert claims[number].host == name
                claims[number] = self._new(service, number, name)
            case Drain(slot=number):
                assert number not in self.services[service].slots, "nothing wanted is drained"
                self.leaving.add(claims[number].info.id)
            case Release(slot=number):
                assert claims.pop(number).host == name
            case Discard(slot=number):
                assert claims.pop(number).host not in self.hosts
            case _:
                assert isinstance(action, GiveUp)

    def _new(self, service: str, number: int, name: str) -> SlotRecord:
        self._made += 1
        config = self.services[service].config_id
        made = slot(service, number, S.CREATING, on=name, config=config)
        return replace(made, info=replace(made.info, id=f"{made.info.id}-{self._made}"))

    def settle(self, bound: int) -> None:
        for _ in range(bound):
            if not self.round():
                return
        raise AssertionError(f"not settled after {bound} rounds: {self.services} {self.slots}")

    def to_replace(self) -> int:
        """How many instances are replaced at most: those that are outdated, and those that are made
        again on a host that is being drained, as no other has room yet, and then leave it.
        """
        state = self.state
        draining = set(state.draining())
        return sum(
            len(outdated(service, state))
            + sum(
                claim.info.state in ENDED and claim.host in draining
                for number, claim in self.slots.get(service, {}).items()
                if number in record.slots
            )
            for service, record in self.services.items()
        )

    def wanted(self) -> Iterator[tuple[str, int, SlotRecord]]:
        """The slots that nothing is wrong with, and their claims."""
        for service, record in self.services.items():
            old = outdated(service, self.state)
            for number in record.slots:
                claim = self.slots.get(service, {}).get(number)
                if claim is None or number in old or claim.host not in self.hosts:
                    continue
                if claim.info.state in SERVING:
                    yield service, number, claim

    def check_settled(self) -> None:
        """Each slot of a set serves, or there is no host for it; nothing else is claimed."""
        state = self.state
        for service, record in self.services.items():
            claims = self.slots.get(service, {})
            serving = {n for n, claim in claims.items() if claim.info.state in SERVING}
            serving &= {n for n, claim in claims.items() if claim.host in self.hosts}
            assert claims.keys() <= set(record.slots)
            short = sorted(set(record.slots) - serving)
            assert place(service, state, record, short, at=AT) == {}


@st.composite
def troubled(draw: st.DrawFn) -> Rounds:
    """A fleet that Boxes may have left in the middle of anything, some of its hosts lost."""
    names = NAMES[: draw(st.integers(1, 4))]
    surge = draw(st.integers(1, 3))
    hosts: dict[str, HostRecord] = {}
    for name in names:
        offered = draw(st.lists(st.sampled_from(SERVICES), min_size=1, unique=True))
        offers = {service: Offer(max_surge=surge) for service in offered}
        hosts[name] = replace(host(room=draw(st.integers(1, 6))), services=offers)
    services, slots = {}, {}
    for service in draw(st.lists(st.sampled_from(SERVICES), unique=True)):
        members = sorted(draw(st.lists(st.integers(0, 7), unique=True, max_size=4)))
        config = draw(st.sampled_from([ScaleConfig(), NEW]))
        record = ServiceRecord(version=1, target=len(members), slots=members, config=config)
        services[service] = record
        able = [name for name in names if service in hosts[name].services]
        slots[service] = {
            number: slot(
                service,
                number,
                draw(st.sampled_from([S.CREATING, S.READY, S.BUSY, S.FAILED])),
                on=draw(st.sampled_from([*able, "box-gone"])),
            )
            for number in draw(st.lists(st.integers(0, 7), unique=True, max_size=5))
        }
    orders = {}
    if draw(st.booleans()):
        orders[draw(st.sampled_from(names))] = HostOrder(draining=draw(st.booleans()))
    return Rounds(FleetState(hosts=hosts, services=services, slots=slots, orders=orders))


requests = st.lists(
    st.builds(
        admission_request,
        st.sampled_from(SERVICES),
        st.integers(0, 8),
        config=st.sampled_from([None, NEW]),
    ),
    max_size=4,
)


def promised(state: FleetState, service: str) -> tuple[int, int]:
    """The targets of what competes with `service`, and the room of the hosts that can run it."""
    able = state.offering(service)
    rivals = {name for there in able.values() for name in there.services}
    targets = (record.target for name, record in state.services.items() if name in rivals)
    return sum(targets), sum(there.max_instances for there in able.values())


def ask(rounds: Rounds, run: list[AdmissionRequest]) -> None:
    """Have the requests decided, and check what they promise."""
    for request in run:
        service, state = request.request.service, rounds.state
        verdict = decide(request, state)
        if verdict.record is None:
            continue
        before = state.services.get(service, ServiceRecord()).target
        rounds.services[service] = verdict.record
        if verdict.record.target > before:
            targets, room = promised(rounds.state, service)
            assert targets <= room


def bound(rounds: Rounds) -> int:
    return SETTLING + A_REPLACEMENT * rounds.to_replace()


@given(troubled(), requests)
def test_a_fleet_converges_whatever_it_was_left_in(
    rounds: Rounds, run: list[AdmissionRequest]
) -> None:
    ask(rounds, run)
    kept = {(service, number): claim.info.id for service, number, claim in rounds.wanted()}
    rounds.settle(bound(rounds))
    rounds.check_settled()
    for (service, number), instance in kept.items():
        assert rounds.slots[service][number].info.id == instance, "no needless move"


@given(troubled(), requests, st.sampled_from(NAMES))
def test_a_lost_or_new_host_moves_no_instances_of_other_hosts(
    rounds: Rounds,
    run: list[AdmissionRequest],
    name: str,
) -> None:
    ask(rounds, run)
    rounds.settle(bound(rounds))
    if name in rounds.hosts:
        del rounds.hosts[name]
        rounds.dead.add(name)
    else:
        rounds.hosts[name] = host(*SERVICES, room=6)
    kept = {(service, number): claim.info.id for service, number, claim in rounds.wanted()}
    rounds.settle(bound(rounds))
    rounds.check_settled()
    for (service, number), instance in kept.items():
        assert rounds.slots[service][number].info.id == instance
