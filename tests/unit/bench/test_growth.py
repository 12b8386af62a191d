"""Cost against size: curves that grow too fast, and their picture."""

from __future__ import annotations

from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from tests.bench.curves import render_svg
from tests.bench.growth import Curve

SIZES = (100, 1000, 10_000, 100_000)


def curve(cost: Callable[[int], float], power: int, name: str = "it") -> Curve:
    points = [(size, cost(size)) for size in SIZES]
    return Curve(name=name, unit="µs", of="instances", power=power, points=points)


@pytest.mark.parametrize(
    ("cost", "power", "sound"),
    [
        (lambda size: 5.0, 0, True),
        (lambda size: 5.0 + size % 7 / 10, 0, True),  # noise
        (lambda size: 5.0 + size / 1000, 0, False),
        (lambda size: size / 10, 0, False),
        (lambda size: size / 10, 1, True),
        (lambda size: 3.0 + size / 10, 1, True),
        (lambda size: size**1.5, 1, False),
        (lambda size: 0.0, 0, True),
        (lambda size: 0.0 if size == 100 else size / 10, 1, True),  # too little to be measured
        (lambda size: 0.0 if size == 100 else size**2, 1, False),
    ],
)
def test_a_curve_that_grows_too_fast_is_not_sound(
    cost: Callable[[int], float], power: int, sound: bool
) -> None:
    assert curve(cost, power).sound is sound


def test_the_exponent_is_the_power_of_the_size() -> None:
    assert curve(lambda size: 7 * size**2, 1).exponent == pytest.approx(2)


def test_a_picture_has_a_chart_for_each_curve() -> None:
    curves = [curve(lambda size: size, 1, "a & b"), curve(lambda size: size, 0), curve(float, 1)]
    drawn = ElementTree.fromstring(render_svg(curves))  # noqa: S314 - our own
    names = [node.text for node in drawn.iter() if node.get("class") == "name"]
    assert names == ["a & b", "it", "it"]
    kinds = [node.get("class") for node in drawn.iter() if node.get("class") in ("sound", "much")]
    assert kinds == ["sound", "much", "sound"]
