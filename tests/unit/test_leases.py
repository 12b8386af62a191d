"""Leases by the own monotonic clock: who is dead, and who only could not be heard."""

from __future__ import annotations

from bridge.bus.leases import Leases


def test_a_lease_that_is_not_renewed_runs_out_once() -> None:
    leases = Leases[str](10)
    leases.renew("a", 0)
    leases.renew("b", 0)
    for now in range(1, 10):
        leases.renew("b", now)
        assert leases.tick(now, live=True) == []
    assert leases.tick(10, live=True) == ["a"]
    assert leases.tick(11, live=True) == []
    assert leases.holders == {"b"}


def test_no_deadline_is_judged_while_nothing_can_be_heard() -> None:
    leases = Leases[str](10)
    leases.renew("a", 0)
    assert [leases.tick(now, live=False) for now in range(1, 30)] == [[]] * 29
    leases.rearm(29)  # heard again: the view is complete
    assert [leases.tick(now, live=True) for now in range(30, 39)] == [[]] * 9
    assert leases.tick(39, live=True) == ["a"]


def test_a_stall_of_the_own_loop_condemns_nobody() -> None:
    leases = Leases[str](10)
    leases.renew("a", 0)
    assert leases.tick(1, live=True) == []
    assert leases.tick(60, live=True) == []  # this process stood still; "a" may well have renewed
    assert leases.tick(61, live=True) == []
    assert [leases.tick(61 + n, live=True) for n in range(1, 9)] == [[]] * 8
    assert leases.tick(70, live=True) == ["a"]


def test_a_released_lease_is_over_and_nobody_is_told() -> None:
    leases = Leases[str](10)
    leases.renew("a", 0)
    leases.release("a")
    leases.release("a")
    assert leases.holders == set()
    assert leases.tick(1, live=True) == []
