"""Revisions, ranks, and requests that are granted in full or not at all."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from bridge.box.scheduler import rollout
from bridge.box.scheduler.admission import Admission, decide
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.ranks import rank_of, ranked
from bridge.box.state.records import ServiceRecord, check_service
from bridge.protocol import ScaleConfig
from bridge.reply_codes import ReplyCode
from tests.unit.fleets import AT, admission_request, fleet, host, slot


def scale(state: FleetState, *, headers: dict[str, Any] | None = None, **body: Any) -> Admission:
    return decide(replace(admission_request(**body), **(headers or {})), state)


def stored(state: FleetState, admission: Admission) -> FleetState:
    assert admission.record is not None
    check_service("web", admission.record)
    return replace(state, services={**state.services, "web": admission.record})


def test_the_revision_counts_granted_changes_of_target_or_config_and_nothing_else() -> None:
    state = fleet(hosts={"box-a": host(room=5)})
    seen = []
    for body in (
        {"replicas": 2},
        {"replicas": 2, "request_id": "the same target"},
        {"replicas": 2, "config": ScaleConfig(env={"A": "1"})},
        {"replicas": 50},  # capped to 5
        {"replicas": 50, "request_id": "capped again"},
        {"replicas": 0},
    ):
        admission = scale(state, **body)
        seen.append(admission.revision)
        state = stored(state, admission) if admission.record else state
    assert seen == [1, 1, 2, 3, 3, 4]


def test_a_step_of_a_rollout_leaves_the_revision_alone() -> None:
    claims = {number: slot("web", number, config="old") for number in (0, 1)}
    record = ServiceRecord(version=7, revision=3, target=2, slots=[0, 1])
    state = fleet(services={"web": record}, slots={"web": claims})
    step = rollout.next_step("web", state, at=AT, host="box-a")
    assert step is not None
    assert (step.version, step.revision) == (8, 3)


def test_a_request_that_expects_another_revision_changes_nothing() -> None:
    record = ServiceRecord(version=9, revision=4, target=1, slots=[0])
    state = fleet(services={"web": record})
    refused = scale(state, replicas=2, headers={"expected_revision": 3})
    assert (refused.code, refused.record, refused.revision) == (ReplyCode.STALE_REVISION, None, 4)
    assert refused.response.error == (
        "web has revision 4, and the request expects 3: read its state again"
    )
    assert scale(state, replicas=2, headers={"expected_revision": 4}).revision == 5
    assert scale(fleet(), replicas=2, headers={"expected_revision": 0}).revision == 1


def test_a_repeat_gets_the_revision_of_the_first_answer_whatever_it_expects() -> None:
    state = fleet()
    first: dict[str, Any] = {"replicas": 2, "request_id": "r", "headers": {"expected_revision": 0}}
    state = stored(state, scale(state, **first))
    state = stored(state, scale(state, replicas=3))
    repeat = scale(state, **first)
    assert (repeat.code, repeat.record, repeat.revision) == (None, None, 1)


def test_what_cannot_be_granted_in_full_is_refused_if_the_request_wants_that() -> None:
    state = fleet(hosts={"box-a": host(room=5)})
    refused = scale(state, replicas=6, request_id="r", headers={"all_or_nothing": True})
    assert (refused.code, refused.record) == (ReplyCode.CAPACITY_EXCEEDED, None)
    assert refused.response.error == (
        "There is room for 5 instances (max 5 total, 0 used by other services)"
    )
    assert scale(state, replicas=5, headers={"all_or_nothing": True}).code is None
    # A refusal leaves no receipt: the same id may succeed later.
    assert scale(fleet(), replicas=6, request_id="r", headers={"all_or_nothing": True}).record


def test_the_highest_ranks_end_first_if_the_request_wants_that() -> None:
    record = ServiceRecord(version=1, target=3, slots=[0, 4, 7], ranks=[4, 0, 7])
    claims = {0: slot("web", 0), 4: slot("web", 4), 7: slot("web", 7, inflight=9)}
    state = fleet(services={"web": record}, slots={"web": claims})
    lower = scale(state, replicas=1, headers={"highest_rank_first": True})
    assert lower.record is not None
    assert lower.record.slots == [4]
    states = [info.state.value for info in lower.response.instances]
    assert states == ["Draining", "Ready", "Draining"]


@st.composite
def targets(draw: st.DrawFn) -> list[tuple[int, bool, ScaleConfig]]:
    configs = st.sampled_from([ScaleConfig(), ScaleConfig(env={"A": "1"})])
    return draw(st.lists(st.tuples(st.integers(0, 8), st.booleans(), configs), max_size=12))


@given(targets())
def test_ranks_have_no_gaps_and_only_what_leaves_or_exceeds_the_target_changes_them(
    steps: list[tuple[int, bool, ScaleConfig]],
) -> None:
    state = fleet(hosts={"box-a": host(room=20)}, services={"web": ServiceRecord()})
    before: dict[int, int] = {}
    for target, highest, config in steps:
        admission = scale(
            state, replicas=target, config=config, headers={"highest_rank_first": highest}
        )
        state = stored(state, admission) if admission.record else state
        state = running(state)
        while step := rollout.next_step("web", state, at=AT + timedelta(minutes=1), host="box-a"):
            check_service("web", step)
            state = running(replace(state, services={"web": step}))
            before = checked_ranks(state, before)
        before = checked_ranks(state, before)


def running(state: FleetState) -> FleetState:
    """Each slot of the set with a Ready instance of its config, and no other slot."""
    record = state.services.get("web", ServiceRecord())
    old = state.slots.get("web", {})
    claims = {
        number: old.get(number) or slot("web", number, config=record.config_id)
        for number in record.slots
    }
    return fleet(hosts=dict(state.hosts), services=dict(state.services), slots={"web": claims})


def checked_ranks(state: FleetState, before: dict[int, int]) -> dict[int, int]:
    record = state.services.get("web", ServiceRecord())
    slots, rank = ranked(record), rank_of(record)
    assert len(slots) == record.target
    ranks = {number: rank(number) for number in record.slots}
    kept = {number: known for number, known in ranks.items() if known is not None}
    assert sorted(kept.values()) == list(range(record.target))
    for number, earlier in before.items():
        if number in kept and earlier < record.target:
            assert kept[number] == earlier
    return kept


def test_a_repeat_with_another_digest_is_another_request() -> None:
    state = fleet()
    body: dict[str, Any] = {"replicas": 2, "request_id": "r"}
    state = stored(state, scale(state, **body, headers={"digest": "a"}))
    assert scale(state, **body, headers={"digest": "a"}).code is None
    assert scale(state, **body, headers={"digest": "b"}).code is ReplyCode.CONFLICT
