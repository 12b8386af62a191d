"""The results of a run: ratios, goals, warnings, the table and the picture."""

from __future__ import annotations

import io
from xml.etree import ElementTree

import pytest
from rich.console import Console

from bridge.bench.machine import Machine, Noise
from bridge.bench.report import format_number, render_table
from bridge.bench.row import Goal, Result, at_least, at_most
from bridge.bench.runner import Report
from bridge.bench.svg import render_svg

SVG = "{http://www.w3.org/2000/svg}"
QUIET = Noise(wobble=1.1, load=0.5, cpus=2, steal=0.1, others=3.0)


def result(
    name: str = "row",
    ours: tuple[float, ...] = (),
    floor: tuple[float, ...] = (),
    *,
    goal: float | None = 1.0,
    more: bool = True,
    error: str = "",
) -> Result:
    return Result(
        name=name,
        what="what <is> done",
        against="a & b" if floor else "",
        unit="ms",
        goal=None if goal is None else Goal(goal, at_least=more),
        ours=[*ours],
        floor=[*floor],
        error=error,
    )


def report(*rows: Result) -> Report:
    machine = Machine(
        processor="P",
        cpus=2,
        memory_gib=1.0,
        system="S",
        python="Py",
        loop="asyncio",
        versions={"box-bridge": "1"},
    )
    return Report(
        at="2026-11-21T08:00:00Z",
        rounds=3,
        machine=machine,
        server={},
        noise=QUIET,
        warnings=QUIET.warnings,
        rows=[*rows],
    )


def test_the_value_of_a_row_is_the_median_of_its_ratios() -> None:
    # Another round's floor says nothing of this round: the machine was another one then.
    row = result(ours=(10.0, 100.0, 30.0), floor=(5.0, 100.0, 10.0), goal=2.0)
    value = row.value
    assert value is not None
    assert (value.median, value.low, value.high) == (2.0, 1.0, 3.0)
    assert row.met


def test_the_value_of_a_row_without_a_floor_is_its_median_figure() -> None:
    row = result(ours=(3.0, 9.0, 5.0), goal=5.0, more=False)
    assert row.ratios == []
    assert row.met
    assert not result(ours=(3.0, 9.0, 5.1), goal=5.0, more=False).met


def test_a_row_without_figures_meets_no_goal() -> None:
    row = result(error="the server went away", more=False)
    assert row.value is None
    assert not row.met
    assert not report(result(ours=(2.0,)), row).met
    assert report(result(ours=(2.0,))).met


def test_a_row_without_a_goal_is_met_by_any_figure() -> None:
    row = result(ours=(2.0,), floor=(1.0,), goal=None)
    assert row.met
    assert not result(goal=None, error="gone").met
    page = io.StringIO()
    Console(file=page, width=200).print(render_table(report(row)))
    assert page.getvalue().splitlines()[1].split()[-4:] == ["2.00", "2.00", "2.00", "-"]
    assert "2×" in render_svg(report(row))


def test_a_goal_is_met_at_its_bound() -> None:
    assert at_least(4.0).met(4.0)
    assert not at_least(4.0).met(3.99)
    assert at_most(1.15).met(1.15)
    assert not at_most(1.15).met(1.16)


@pytest.mark.parametrize(
    ("noise", "said"),
    [
        (QUIET, ""),
        (Noise(wobble=1.5, load=0.5, cpus=2, steal=0.1, others=3.0), "1.50 times as long"),
        (Noise(wobble=1.1, load=2.5, cpus=2, steal=0.1, others=3.0), "load was 2.5 on 2"),
        (Noise(wobble=1.1, load=0.5, cpus=2, steal=9.0, others=3.0), "hypervisor kept 9 %"),
        (Noise(wobble=1.1, load=0.5, cpus=2, steal=0.1, others=40.0), "used 40 %"),
    ],
)
def test_a_noisy_machine_gives_a_warning(noise: Noise, said: str) -> None:
    warnings = noise.warnings
    assert bool(warnings) == bool(said)
    assert said in "".join(warnings)


def test_the_table_has_each_row_with_its_verdict() -> None:
    rows = [
        result("good", (8.0,), (2.0,), goal=4.0),
        result("bad", (12.0,), goal=10.0, more=False),
        result("gone", error="no [bold]answer"),
    ]
    page = io.StringIO()
    Console(file=page, width=200).print(render_table(report(*rows)))
    good, bad, gone = page.getvalue().splitlines()[1:]
    assert good.split()[-6:] == ["4.00", "4.00", "4.00", "≥", "4", "met"]
    assert bad.split()[-4:] == ["12", "≤", "10", "short"]
    assert gone.rstrip().endswith("failed: no [bold]answer")


def test_the_picture_has_a_bar_for_each_row_and_better_is_farther_right() -> None:
    rows = [
        result("a", (8.0, 9.0), (2.0, 2.0), goal=4.0),
        result("b", (1.0,), (2.0,), goal=1.0, more=False),
        result("c", (2.0,), goal=1.0, more=False),
        result("d", error="<gone>"),
    ]
    root = ElementTree.fromstring(render_svg(report(*rows)))  # noqa: S314 - our own
    bars = [bar for bar in root.iter(f"{SVG}rect") if bar.get("class") != "page"]
    assert [bar.get("class") for bar in bars] == ["met", "met", "short"]
    middle = next(root.iter(f"{SVG}path")).get("d", "").split("V")[0].removeprefix("M").split()[0]
    assert float(bars[1].get("x", 0)) >= float(middle)  # at most 1, and a half: good
    assert float(bars[2].get("x", 0)) < float(middle)
    assert sum(1 for _ in root.iter(f"{SVG}circle")) == 4


@pytest.mark.parametrize(
    ("value", "shown"), [(123456.7, "123,457"), (12.345, "12.3"), (0.0123, "0.0123")]
)
def test_figures_have_three_significant_digits(value: float, shown: str) -> None:
    assert format_number(value) == shown
