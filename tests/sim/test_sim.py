"""Simulated fleets, some hundred small ones: the promises hold, and a defect would be found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.sim.planted import PLANTED

SOME = ("--first", "100", "--seeds", "300", "--hosts", "4", "--instances", "12")
SMALL = ("--up-to-hosts", "8", "--up-to-instances", "40")


def simulated(*arguments: str) -> tuple[int, dict[str, Any], str]:
    """The exit code, the summary and what is said of failures; in a process of its own, for the
    order of sets is part of a run.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.sim", *arguments], capture_output=True, text=True, timeout=100
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


@pytest.mark.parametrize("fleets", [30, pytest.param(200, marks=pytest.mark.slow)])
def test_small_fleets_keep_the_promises_under_every_fault(fleets: int) -> None:
    code, summary, said = simulated("--seeds", str(fleets), *SMALL)
    assert code == 0, said
    assert (summary["seeds"], summary["failed"]) == (fleets, [])
    for fault in ("die", "crash", "freeze", "cut", "outage", "lose", "order", "one_ends"):
        assert summary[fault] > 0, f"no fault of the kind {fault} was injected"
    assert min(summary["takeovers"], summary["doubles"], summary["restored"]) > 0


@pytest.mark.slow
def test_a_large_fleet_whose_boxes_share_views_keeps_the_promises() -> None:
    code, summary, said = simulated("--seed", "7", "--hosts", "40", "--instances", "400")
    assert code == 0, said
    assert summary["counts"]["decisions"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("defect", PLANTED)
def test_a_planted_defect_is_found(defect: str) -> None:
    code, summary, said = simulated("--planted", defect, "--fail-fast", *SOME)
    assert code == 1
    assert summary["failed"]
    assert f"again: python -m tests.sim --seed {summary['failed'][0]}" in said


@pytest.mark.slow
def test_a_seed_replays_exactly() -> None:
    found = [simulated("--seed", "1", "--hosts", "8", "--instances", "30") for _ in range(2)]
    for _, summary, _ in found:
        del summary["seconds"]
    assert found[0] == found[1]
    assert found[0][1]["events"] > 1000


@pytest.mark.slow
def test_an_interrupted_run_continues_where_it_stopped(tmp_path: Path) -> None:
    kept = tmp_path / "seeds.jsonl"
    fleets = ("--hosts", "3", "--instances", "9")
    _, whole, _ = simulated("--seeds", "12", *fleets)
    simulated("--seeds", "8", *fleets, "--record", str(kept))
    lines = kept.read_text().splitlines(keepends=True)
    of_old_code = json.dumps(json.loads(lines[5]) | {"code": "old", "counts": {}})
    kept.write_text("".join([*lines[:5], of_old_code, "\n", lines[6][:50]]))
    _, resumed, _ = simulated("--seeds", "12", *fleets, "--record", str(kept))
    for summary in (whole, resumed):
        del summary["seconds"], summary["worker_seconds"]
    assert resumed == whole
    assert len(kept.read_text().splitlines()) == 5 + 1 + 7  # five of the twelve were there
