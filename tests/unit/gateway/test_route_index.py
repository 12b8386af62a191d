"""Picking from the routes of a service."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from bridge.gateway.routes.index import Route, RouteIndex
from bridge.protocol import InstanceState

AT = datetime(2026, 1, 1, tzinfo=UTC)


def route(name: str, service: str = "web", host: str = "") -> Route:
    return Route(
        service=service,
        instance_id=name,
        endpoint="127.0.0.1:80",
        state=InstanceState.READY,
        host=host,
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


def test_instances_that_register_themselves_get_half_of_the_picks_at_most() -> None:
    made = index(*(f"x-{number}" for number in range(1000)))
    for number in range(2):
        made.put(route(f"web-{number}", host="box-a"))
    picks = [made.pick("web", random.Random(seed).randrange, {}) for seed in range(1000)]
    of_boxes = sum(picked is not None and picked.host == "box-a" for picked in picks)
    assert 400 < of_boxes < 600
    for number in range(2, 10_000):
        made.put(route(f"web-{number}", host="box-a"))
    picks = [made.pick("web", random.Random(seed).randrange, {}) for seed in range(1000)]
    of_boxes = sum(picked is not None and picked.host == "box-a" for picked in picks)
    assert of_boxes > 850, "in proportion to their number"


def test_a_route_whose_registration_names_a_host_later_is_one_route() -> None:
    made = index("a", "b")
    made.put(route("a", host="box-a"))
    assert (len(made), made.count("web")) == (2, 2)
    assert made.get("web", "a") == route("a", host="box-a")
    assert sorted(each.instance_id for each in made.of("web")) == ["a", "b"]
    made.put(route("a"))
    made.delete("web", "a")
    assert list(made) == [route("b")]
