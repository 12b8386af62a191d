"""The directories of ended instances: the newest stay, whatever else deletes some."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from bridge.box.runtimes.logs import instances_dir, prune
from bridge.settings import KeepEnded


def ended(data_dir: Path, count: int) -> list[Path]:
    directories = [instances_dir(data_dir) / f"web-{number}" for number in range(count)]
    for directory in directories:
        directory.mkdir(parents=True)
    return directories


def test_the_newest_directories_of_a_service_and_the_living_ones_stay(tmp_path: Path) -> None:
    before = ended(tmp_path, 5)
    prune(tmp_path, [before[0].name], KeepEnded(count=2))
    assert before[0].is_dir()
    assert len(list(instances_dir(tmp_path).iterdir())) == 2 + 1


def test_a_directory_that_another_process_deletes_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended(tmp_path, 2)
    is_dir = Path.is_dir

    def look_and_remove(path: Path) -> bool:
        there = is_dir(path)
        if path.name == "web-1":
            path.rmdir()
        return there

    monkeypatch.setattr(Path, "is_dir", look_and_remove)
    prune(tmp_path, [], KeepEnded())
    assert [path.name for path in instances_dir(tmp_path).iterdir()] == ["web-0"]


def test_a_directory_of_an_instance_that_ended_long_ago_goes_whatever_the_count(
    tmp_path: Path,
) -> None:
    old, new = ended(tmp_path, 2)
    long_ago = time.time() - 3 * 3600
    os.utime(old, (long_ago, long_ago))
    prune(tmp_path, [], KeepEnded(count=5, age="2h"))
    assert [path.name for path in instances_dir(tmp_path).iterdir()] == [new.name]
