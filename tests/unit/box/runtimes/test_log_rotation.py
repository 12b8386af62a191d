"""Logs are bounded."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.box.runtimes.logs import last_log_line, rotate
from tests.failing_call import FailingCall


def write(file: Path, text: str) -> None:
    with file.open("a") as log:
        log.write(text)


def test_a_log_keeps_its_size_and_its_number_of_files(tmp_path: Path) -> None:
    log = tmp_path / "stdout.log"
    for number in range(5):
        write(log, f"{number}" * 150)
        rotate(log, 100, 3)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "stdout.log": "",
        "stdout.log.1": "4" * 100,
        "stdout.log.2": "3" * 100,
    }
    assert (tmp_path / "stdout.log.1").stat().st_mode & 0o777 == 0o600


def test_a_short_log_stays_as_it_is(tmp_path: Path) -> None:
    write(tmp_path / "stdout.log", "short")
    rotate(tmp_path / "stdout.log", 100, 3)
    assert [file.name for file in tmp_path.iterdir()] == ["stdout.log"]


def test_a_writer_appends_to_a_log_that_was_emptied(tmp_path: Path) -> None:
    with (tmp_path / "stdout.log").open("ab", buffering=0) as instance:
        instance.write(b"x" * 200)
        rotate(tmp_path / "stdout.log", 100, 1)
        instance.write(b"y")
    assert (tmp_path / "stdout.log").read_text() == "y"


def test_a_full_disk_costs_the_older_lines_and_not_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "stdout.log"
    write(log, "x" * 200)
    failing = FailingCall(OSError(28, "No space left on device"))
    monkeypatch.setattr("bridge.box.runtimes.logs._copy_end", failing)
    rotate(log, 100, 2)
    assert failing.count
    assert log.read_text() == ""
    assert "No space left on device" in caplog.text


def test_the_last_line_is_found_after_a_rotation(tmp_path: Path) -> None:
    write(tmp_path / "stdout.log", "x" * 100 + "\nthe last words\n")
    rotate(tmp_path / "stdout.log", 50, 2)
    assert last_log_line(tmp_path) == "the last words"
