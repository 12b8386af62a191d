"""Leases by the own monotonic clock: who is dead, and who only could not be heard."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bridge.bus.leases import Leases


def test_a_lease_that_is_not_renewed_runs_out_once() -> None:
    leases = Leases(10)
    leases.renew("a", 0)
    leases.renew("b", 0)
    for now in range(1, 10):
        leases.renew("b", now)
        assert leases.tick(now, live=True) == []
    assert leases.tick(10, live=True) == ["a"]
    assert leases.tick(11, live=True) == []
    assert leases.holders == {"b"}


def test_no_deadline_is_judged_while_nothing_can_be_heard() -> None:
    leases = Leases(10)
    leases.renew("a", 0)
    assert [leases.tick(now, live=False) for now in range(1, 30)] == [[]] * 29
    leases.rearm(29)  # heard again: the view is complete
    assert [leases.tick(now, live=True) for now in range(30, 39)] == [[]] * 9
    assert leases.tick(39, live=True) == ["a"]


def test_a_stall_of_the_own_loop_condemns_nobody() -> None:
    leases = Leases(10)
    leases.renew("a", 0)
    assert leases.tick(1, live=True) == []
    assert leases.tick(60, live=True) == []  # this process stood still; "a" may well have renewed
    assert leases.tick(61, live=True) == []
    assert [leases.tick(61 + n, live=True) for n in range(1, 9)] == [[]] * 8
    assert leases.tick(70, live=True) == ["a"]


def test_a_released_lease_is_over_and_nobody_is_told() -> None:
    leases = Leases(10)
    leases.renew("a", 0)
    leases.release("a", 0)
    leases.release("a", 0)
    assert leases.holders == set()
    assert leases.tick(1, live=True) == []


@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 40), min_size=1),
    st.sets(st.integers(1, 59), max_size=5),
)
def test_nobody_is_dead_before_a_lease_has_ended_nor_many_before_another(
    last_heard: dict[str, int], blind: set[int]
) -> None:
    """Whoever falls silent when, and whenever nothing could be heard."""
    leases = Leases(10)
    armed = 0
    for now in range(60):
        live = now not in blind
        if live and now - 1 in blind:
            leases.rearm(now)
            armed = now
        for holder, last in last_heard.items():
            if live and now <= last:
                leases.renew(holder, now)
        leases.tick(now, live=live)
        dead = leases.dead(now)
        heard = {holder: min(now, last) for holder, last in last_heard.items()}
        assert all(heard[holder] + 10 <= now and armed + 10 <= now for holder in dead)
        together = [holder for holder in heard if now - 20 < heard[holder] <= now - 10]
        if len(together) >= 2 and len(together) * 2 >= len(heard):
            assert not dead & set(together)
    if not blind or max(blind) < 30:
        assert leases.dead(60) >= {holder for holder, last in last_heard.items() if last < 30}
