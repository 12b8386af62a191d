"""Leases by the own monotonic clock: who is dead, and who only could not be heard."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bridge.bus.leases import Leases, WatchedLeases


def test_a_lease_that_is_not_renewed_runs_out_once() -> None:
    leases = WatchedLeases[str](10)
    leases.renew("a", 0)
    leases.renew("b", 0)
    for now in range(1, 10):
        leases.renew("b", now)
        assert leases.tick(now, live=True) == []
    assert leases.tick(10, live=True) == ["a"]
    assert leases.tick(11, live=True) == []
    assert leases.holders == {"b"}


def test_no_deadline_is_judged_while_nothing_can_be_heard() -> None:
    leases = WatchedLeases[str](10)
    leases.renew("a", 0)
    assert [leases.tick(now, live=False) for now in range(1, 30)] == [[]] * 29
    leases.rearm(29)  # heard again: the view is complete
    assert [leases.tick(now, live=True) for now in range(30, 39)] == [[]] * 9
    assert leases.tick(39, live=True) == ["a"]


def test_a_stall_of_the_own_loop_expires_no_lease() -> None:
    leases = WatchedLeases[str](10)
    leases.renew("a", 0)
    assert leases.tick(1, live=True) == []
    assert leases.tick(60, live=True) == []  # this process stood still; "a" may well have renewed
    assert leases.tick(61, live=True) == []
    assert [leases.tick(61 + n, live=True) for n in range(1, 9)] == [[]] * 8
    assert leases.tick(70, live=True) == ["a"]


def test_a_released_lease_ends_without_a_report() -> None:
    leases = WatchedLeases[str](10)
    leases.renew("a", 0)
    leases.release("a")
    leases.release("a")
    assert leases.holders == set()
    assert leases.tick(1, live=True) == []


def watched(*holders: str) -> WatchedLeases[str]:
    """An observer that has heard of all `holders` once a second for longer than a lease."""
    leases = WatchedLeases[str](10)
    for now in range(21):
        for holder in holders:
            leases.renew(holder, now)
        leases.tick(now, live=True)
    return leases


def hear(leases: WatchedLeases[str], holders: str, first: int, last: int) -> None:
    for now in range(first, last):
        for holder in holders:
            leases.renew(holder, now)
        leases.tick(now, live=True)


def test_one_of_many_that_vanishes_is_dead_when_its_lease_is_over() -> None:
    leases = watched("a", "b", "c")
    hear(leases, "ab", 21, 30)
    assert leases.dead(29) == set()
    hear(leases, "ab", 30, 31)
    assert leases.dead(30) == {"c"}
    leases.renew("c", 31)
    assert leases.dead(31) == set()


def test_half_of_all_vanishing_at_once_are_given_a_lease_more() -> None:
    leases = watched("a", "b", "c", "d")
    hear(leases, "a", 21, 23)
    leases.renew("b", 22)  # they do not fall silent in the same second
    hear(leases, "a", 23, 40)
    assert leases.holders == {"a"}
    assert leases.dead(39) == set(), "a lease after the first of them is not over"
    hear(leases, "a", 40, 41)
    assert leases.dead(40) == {"c", "d"}
    hear(leases, "a", 41, 43)
    assert leases.dead(42) == {"b", "c", "d"}


def test_after_a_silence_of_all_no_holder_is_dead_before_a_lease_was_watched_again() -> None:
    """A cluster that elects for longer than two leases: who renews last is not dead."""
    leases = watched("a", "b", "c")
    hear(leases, "", 21, 55)
    assert leases.dead(54) == {"a", "b", "c"}, "whoever says so holds no lease, and may not act"
    hear(leases, "ab", 55, 65)
    assert leases.dead(64) == set()
    hear(leases, "ab", 65, 66)
    assert leases.dead(65) == {"c"}


def test_a_holder_that_vanished_among_many_gets_a_lease_more_even_if_the_others_are_back() -> None:
    """A store that took nothing for a while: the one whose renewal comes last is not dead."""
    leases = watched("a", "b", "c", "d")
    hear(leases, "d", 21, 31)
    assert leases.holders == {"d"}
    hear(leases, "abd", 31, 40)
    assert leases.dead(39) == set()
    hear(leases, "abd", 40, 41)
    assert leases.dead(40) == {"c"}
    leases.renew("c", 41)
    hear(leases, "abd", 41, 52)
    assert leases.dead(51) == {"c"}, "alone this time"


def test_no_holder_is_dead_before_a_whole_lease_was_watched() -> None:
    leases = WatchedLeases[str](10)
    leases.expect("gone", 0)
    for now in range(10):
        leases.renew("a", now)
        assert leases.tick(now, live=True) == []
        assert leases.dead(now) == set()
    leases.renew("a", 10)
    assert leases.tick(10, live=True) == ["gone"]
    assert leases.dead(10) == {"gone"}
    leases.tick(11, live=False)
    assert leases.dead(11) == set(), "nothing is seen"
    leases.rearm(12)
    leases.tick(12, live=True)
    assert leases.dead(13) == set(), "the watch has begun anew"


def test_a_holder_that_gave_its_lease_back_did_not_vanish() -> None:
    leases = watched("a", "b", "c", "d")
    leases.release("c")
    leases.release("d")
    hear(leases, "ab", 21, 22)
    assert leases.dead(21) == {"c", "d"}


@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 40), min_size=1),
    st.sets(st.integers(1, 59), max_size=5),
)
def test_no_holder_is_dead_before_its_lease_has_ended_nor_many_before_another(
    last_heard: dict[str, int], blind: set[int]
) -> None:
    """Whoever falls silent when, and whenever nothing could be heard."""
    leases = WatchedLeases[str](10)
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


class Counted(dict[int, float]):
    """Deadlines that count how often all of them are looked at."""

    looks = 0

    def values(self) -> Any:
        self.looks += 1
        return super().values()

    def items(self) -> Any:
        self.looks += 1
        return super().items()


def test_while_all_renew_in_time_a_tick_does_not_look_at_them() -> None:
    leases = Leases[int](30)
    leases._deadlines = deadlines = Counted()
    for half in range(240):  # two minutes, a tick each half second
        for holder in range(half % 20, 100, 20):  # each renews every 10 s
            leases.renew(holder, half / 2)
        assert leases.tick(half / 2, live=True) == []
    assert deadlines.keys() == set(range(100))
    assert 2 <= deadlines.looks <= 16  # a pair of looks a lease, less what renewals put off
