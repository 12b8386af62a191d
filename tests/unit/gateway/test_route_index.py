"""Picking from the routes of a service."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from bridge.gateway.routes.index import Route, RouteIndex
from bridge.protocol import InstanceState

AT = datetime(2026, 1, 1, tzinfo=UTC)


def route(name: str, service: str = "web") -> Route:
    return Route(
        service=service,
        instance_id=name,
        endpoint="127.0.0.1:80",
        state=InstanceState.READY,
        host="",
        metadata={},
        started_at=AT,
    )


def index(*names: str) -> RouteIndex:
    made = RouteIndex()
    for name in names:
        made.put(route(name))
    return made


def dice(*numbers: int) -> Callable[[int], int]:
    """A chance that falls as given, and fits what was asked for."""
    left = iter(numbers)

    def fall(below: int) -> int:
        number = next(left)
        assert 0 <= number < below
        return number

    return fall


def test_nothing_is_picked_where_nothing_is() -> None:
    assert index().pick("web", dice(), {}) is None
    made = index("a")
    made.delete("web", "a")
    assert made.pick("web", dice(), {}) is None
    assert (list(made), len(made), made.of("web")) == ([], 0, ())


def test_the_only_one_is_picked() -> None:
    assert index("a").pick("web", dice(0), {}) == route("a")


@pytest.mark.parametrize(
    ("first", "second", "picked"),
    [(0, 0, "b"), (0, 1, "c"), (1, 0, "b"), (1, 1, "b"), (2, 0, "c"), (2, 1, "b")],
)
def test_of_two_that_differ_the_one_with_fewer_in_flight_is_picked(
    first: int, second: int, picked: str
) -> None:
    inflight = {("web", "a"): 9, ("web", "b"): 1, ("web", "c"): 2}
    chosen = index("a", "b", "c").pick("web", dice(first, second), inflight)
    assert chosen == route(picked)


def test_a_deleted_route_leaves_the_others_where_they_can_be_found() -> None:
    made = index("a", "b", "c")
    before = made.of("web")
    assert made.of("web") is before  # put together once
    made.delete("web", "a")
    assert {each.instance_id for each in made.of("web")} == {"b", "c"}
    assert made.get("web", "c") == route("c")
    assert made.get("web", "a") is None
    made.delete("web", "c")
    assert made.of("web") == (route("b"),)
    assert made.count("web") == 1
    made.put(route("d"))
    assert made.of("web") == (route("b"), route("d"))
