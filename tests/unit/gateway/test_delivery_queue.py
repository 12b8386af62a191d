"""Which event is sent next: always in order for each instance, whatever fails."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from bridge.gateway.relay.delivery_queue import Backoff, DeliveryQueue, QueuedEvent
from bridge.protocol import InstanceEvent, InstanceState
from tests.unit.fleets import AT

S = InstanceState


class Item(Struct, frozen=True):
    """A delivery, as far as lanes care."""

    event: InstanceEvent
    box_seq: int
    seq: int


def item(name: str, number: int, seq: int = 0) -> Item:
    event = InstanceEvent.transition(name, "web", S.READY, S.BUSY, at=AT)
    return Item(event, number, seq or number)


def lanes_of(*items: Item, backoff: Backoff | None = None) -> DeliveryQueue[Item]:
    lanes = DeliveryQueue[Item](backoff or Backoff(first=1, most=60))
    for one in items:
        lanes.put(one)
    return lanes


def taken(lanes: DeliveryQueue[Item], now: float = 0) -> QueuedEvent[Item]:
    held = lanes.next(now)
    assert held is not None
    return held


def names(lanes: DeliveryQueue[Item], now: float = 0) -> list[str]:
    """All that can be sent at once."""
    found = []
    while held := lanes.next(now):
        found.append(f"{held.item.event.instance_id}.{held.item.box_seq}")
    return found


def test_one_event_of_each_instance_is_under_way() -> None:
    lanes = lanes_of(item("a", 1), item("a", 2), item("b", 1))
    first = taken(lanes)
    assert names(lanes) == ["b.1"]
    assert lanes.wait(0) is None
    lanes.settle(first, succeeded=True)
    assert names(lanes) == ["a.2"]


def test_an_instance_whose_event_fails_waits_and_the_others_do_not() -> None:
    lanes = lanes_of(item("a", 1), item("a", 2), item("b", 1))
    lanes.fail(taken(lanes), 0, 1.0)
    for number in (1, 2, 3):
        lanes.put(item("b", number))
        held = taken(lanes)
        assert (held.item.event.instance_id, held.item.box_seq) == ("b", number)
        lanes.settle(held, succeeded=True)
    assert lanes.wait(0) == 1.0
    assert lanes.next(0.9) is None
    again = taken(lanes, 1.0)
    assert (again.item.box_seq, again.failures) == (1, 1)
    assert len(lanes) == 2


def test_the_pause_doubles_up_to_a_bound_and_half_of_it_is_chance() -> None:
    backoff = Backoff(first=1, most=60)
    assert [backoff.delay(n, 1.0) for n in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert backoff.delay(3, 0.0) == 2
    assert backoff.delay(10**6, 1.0) == 60


def test_a_receiver_that_is_out_is_asked_one_event_at_a_time_and_in_turns() -> None:
    lanes = lanes_of(*(item(name, 1) for name in "abcd"))
    for held in [taken(lanes) for _ in range(4)]:
        lanes.fail(held, 0, 1.0)
    assert lanes.out
    asked, now = [], 0.0
    for _ in range(8):
        now += lanes.wait(now) or 0
        held = taken(lanes, now)
        assert lanes.next(now) is None
        asked.append(held.item.event.instance_id)
        lanes.fail(held, now, 1.0)
    assert sorted(asked[:4]) == sorted(asked[4:]) == list("abcd")
    # Nine rounds of one pause each, not one for each event.
    assert now == 1 + 2 + 4 + 8 + 16 + 32 + 60 + 60
    now += lanes.wait(now) or 0
    lanes.settle(taken(lanes, now), succeeded=True)
    assert len(names(lanes, now)) == 3  # all at once again


def test_an_outage_uses_up_the_attempts_of_few() -> None:
    lanes = lanes_of(*(item(f"i{number}", 1) for number in range(100)))
    now = 0.0
    while now < 3600:
        wait = lanes.wait(now)
        assert wait is not None
        now += wait
        while held := lanes.next(now):
            lanes.fail(held, now, 0.5)
    assert max(held.failures for held in lanes) <= 3


def test_a_wish_to_wait_holds_for_all_and_outlasts_another_success() -> None:
    lanes = lanes_of(item("a", 1), item("b", 1), item("c", 1))
    first, second = taken(lanes), taken(lanes)
    lanes.fail(first, 0, 1.0, retry_after=30.0)
    lanes.settle(second, succeeded=True)
    assert lanes.wait(0) == 30.0
    assert names(lanes, 29.9) == []
    assert names(lanes, 30.0) == ["c.1", "a.1"]


def test_a_pause_that_is_longer_than_the_wish_stays() -> None:
    lanes = lanes_of(item("a", 1))
    lanes.fail(taken(lanes), 0, 1.0, retry_after=0.0)
    assert lanes.wait(0) == 1.0


def test_what_comes_again_takes_the_place_of_what_it_is() -> None:
    lanes = lanes_of(item("a", 1, seq=1), item("a", 2, seq=2))
    under_way = taken(lanes)
    again = item("a", 1, seq=1)
    lanes.put(again)
    assert under_way.item is again
    assert len(lanes) == 2


def test_what_comes_late_is_sent_in_its_place() -> None:
    lanes = lanes_of(item("a", 3), item("a", 1), item("a", 2))
    sent = []
    for _ in range(3):
        held = taken(lanes)
        sent.append(held.item.box_seq)
        lanes.settle(held, succeeded=True)
    assert sent == [1, 2, 3]
    assert lanes.wait(0) is None
    assert not lanes.out


def test_events_without_a_number_keep_the_order_of_the_stream() -> None:
    lanes = lanes_of(item("a", 0, seq=9), item("a", 0, seq=4))
    held = taken(lanes)
    assert held.item.seq == 4
    assert held in lanes
    lanes.settle(held, succeeded=True)
    assert held not in lanes


@pytest.mark.parametrize("answered", [True, False])
def test_an_event_that_is_given_up_makes_way(answered: bool) -> None:
    lanes = lanes_of(item("a", 1), item("a", 2))
    lanes.settle(taken(lanes), succeeded=answered)
    assert names(lanes) == ["a.2"]


@given(
    seed=st.integers(0, 2**32),
    instances=st.integers(1, 5),
    failing=st.floats(0, 0.9),
    workers=st.integers(1, 4),
)
def test_whatever_fails_all_is_sent_in_order_and_nothing_is_stuck(
    seed: int, instances: int, failing: float, workers: int
) -> None:
    chance = random.Random(seed)
    waiting = [item(f"i{number}", n) for n in range(1, 6) for number in range(instances)]
    lanes = lanes_of()
    sent: dict[str, list[int]] = {}
    under_way: list[QueuedEvent[Item]] = []
    now, moves = 0.0, 0
    while waiting or len(lanes):
        moves += 1
        assert moves < 5000
        if waiting and chance.random() < 0.5:
            lanes.put(waiting.pop(0))
        while len(under_way) < workers and (held := lanes.next(now)):
            assert held.item.event.instance_id not in {
                one.item.event.instance_id for one in under_way
            }
            under_way.append(held)
        if under_way:
            held = under_way.pop(chance.randrange(len(under_way)))
            if chance.random() < failing:
                after = chance.choice([None, 5.0])
                lanes.fail(held, now, chance.random(), after)
            else:
                sent.setdefault(held.item.event.instance_id, []).append(held.item.box_seq)
                lanes.settle(held, succeeded=True)
        elif len(lanes):
            wait = lanes.wait(now)
            assert wait is not None
            now += wait
    assert all(numbers == [1, 2, 3, 4, 5] for numbers in sent.values())
    assert len(sent) == instances
