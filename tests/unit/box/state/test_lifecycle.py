"""The life of an instance: legal steps, numbered without gaps, told once."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.box.state import lifecycle
from bridge.box.state.lifecycle import ENDED, MAX_MESSAGE, NEXT, IllegalStep, Life
from bridge.protocol import InstanceHealth, InstanceState, encode
from tests.unit.fleets import AT

S = InstanceState


def live(*states: InstanceState) -> Life:
    life = lifecycle.begin("web-1", "web", AT)
    for state in states:
        life, _ = lifecycle.step(life, state, AT)
    return life


def test_the_legal_steps_are_those_of_the_contract() -> None:
    legal = {
        (S.CREATING, S.BOOTING),
        (S.BOOTING, S.READY),
        (S.READY, S.BUSY),
        (S.BUSY, S.READY),
        (S.READY, S.DRAINING),
        (S.BUSY, S.DRAINING),
        (S.DRAINING, S.STOPPING),
        (S.STOPPING, S.STOPPED),
        (S.CREATING, S.STOPPING),
        (S.BOOTING, S.STOPPING),
    }
    legal |= {
        (state, S.FAILED)
        for state in (S.CREATING, S.BOOTING, S.READY, S.BUSY, S.DRAINING, S.STOPPING)
    }
    assert {(state, to) for state, next_ in NEXT.items() for to in next_} == legal
    assert {state for state, next_ in NEXT.items() if not next_} == ENDED == {S.STOPPED, S.FAILED}


def test_ready_at_is_set_once() -> None:
    life = live(S.BOOTING)
    later = AT + timedelta(seconds=5)
    life, _ = lifecycle.step(life, S.READY, AT)
    life, _ = lifecycle.step(life, S.BUSY, later)
    life, _ = lifecycle.step(life, S.READY, later)
    assert life.info.ready_at == AT


def test_busy_with_the_first_request_and_ready_after_ten_idle_samples_in_a_row() -> None:
    life = live(S.BOOTING, S.READY)

    def sample(inflight: int) -> InstanceState | None:
        nonlocal life
        health = InstanceHealth(inflight_requests=inflight)
        life, event = lifecycle.sample(life, health, AT, idle_samples=10)
        return event.to_state if event else None

    assert sample(0) is None
    assert sample(2) is S.BUSY
    assert [sample(0) for _ in range(9)] == [None] * 9
    assert sample(1) is None  # the row is broken
    assert [sample(0) for _ in range(9)] == [None] * 9
    assert sample(0) is S.READY


def test_a_sample_changes_the_load_but_not_the_verdict_of_the_probe() -> None:
    life = live(S.BOOTING, S.READY)
    judged = lifecycle.judge(life, False, AT, "HTTP 500")
    assert judged is not None
    life, note = judged
    assert note.from_state is note.to_state is S.READY
    assert note.message == "unhealthy: HTTP 500"
    assert lifecycle.judge(life, False, AT, "again") is None
    life, _ = lifecycle.sample(life, InstanceHealth(cpu_percent=3.0), AT, idle_samples=10)
    assert life.info.health == InstanceHealth(cpu_percent=3.0, healthy=False)
    mended = lifecycle.judge(life, True, AT, "the probe passes")
    assert mended is not None
    assert mended[1].message == "healthy: the probe passes"


def test_a_draining_instance_is_sampled_but_does_not_become_busy() -> None:
    life = live(S.BOOTING, S.READY, S.DRAINING)
    life, event = lifecycle.sample(life, InstanceHealth(inflight_requests=3), AT, idle_samples=1)
    assert event is None
    assert life.info.health.inflight_requests == 3


@pytest.mark.parametrize("end", [(S.FAILED,), (S.STOPPING, S.STOPPED)])
def test_no_event_follows_the_end(end: tuple[InstanceState, ...]) -> None:
    life = live(*end)
    with pytest.raises(IllegalStep):
        lifecycle.note(life, AT, "still here")
    assert lifecycle.judge(life, False, AT, "why") is None


def test_a_message_is_bounded_so_that_the_event_fits_its_stream() -> None:
    life = live(S.BOOTING)
    _, event = lifecycle.step(life, S.FAILED, AT, "\x01" * 100_000)
    assert len(event.message) == MAX_MESSAGE
    assert len(encode(event)) < 64 * 1024


@given(st.lists(st.sampled_from([*InstanceState, "note"]), max_size=30))
def test_any_sequence_of_steps_makes_one_unbroken_chain_of_events(
    run: list[InstanceState | str],
) -> None:
    life = lifecycle.begin("web-1", "web", AT)
    told = []
    for item in run:
        before = life
        try:
            if isinstance(item, InstanceState):
                life, event = lifecycle.step(life, item, AT)
                assert item in NEXT[before.info.state]
            else:
                life, event = lifecycle.note(life, AT, item)
        except IllegalStep:
            assert life is before
            continue
        told.append((life.seq, event))
    assert [seq for seq, _ in told] == list(range(1, len(told) + 1))
    state = S.CREATING
    for _, event in told:
        assert event.from_state is state
        state = event.to_state
    assert state is life.info.state
