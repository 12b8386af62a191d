"""Why a program could not run, which a shell calls "not found" whatever it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.box.runtimes.process.program import explain_program

PATH = "/usr/bin:/bin"


def write(directory: Path, content: bytes, mode: int = 0o755) -> None:
    (directory / "bin").mkdir()
    file = directory / "bin" / "run"
    file.write_bytes(content)
    file.chmod(mode)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"#!/bin/sh\r\nexec true\r\n", "has the line ends of Windows (CR LF)"),
        (b"#!/usr/bin/env python3\r\n", "has the line ends of Windows (CR LF)"),
        (b"\xef\xbb\xbf#!/bin/sh\n", "starts with a byte order mark"),
        (b"#!/opt/none/python -u\n", "/opt/none/python, does not exist"),
        (b"#!/bin/sh\nexec true\n", ""),
        (b"\x7fELF", ""),
    ],
)
def test_the_first_line_of_a_script_is_judged(tmp_path: Path, content: bytes, reason: str) -> None:
    write(tmp_path, content)
    for program, path in (("./bin/run", PATH), ("run", f"{tmp_path}/bin")):
        assert reason in explain_program(program, str(tmp_path), path)
        assert bool(explain_program(program, str(tmp_path), path)) is bool(reason)


def test_a_program_that_is_not_there_is_named_with_where_it_was_looked_for(tmp_path: Path) -> None:
    assert explain_program("./run", str(tmp_path), PATH) == f"{tmp_path}/run does not exist"
    assert explain_program("no-such", str(tmp_path), PATH).endswith(f"of its PATH: {PATH}")


def test_a_file_that_cannot_be_run_is_named(tmp_path: Path) -> None:
    write(tmp_path, b"#!/bin/sh\n", 0o644)
    assert "is not executable: chmod +x" in explain_program("bin/run", str(tmp_path), PATH)
    assert "is a directory" in explain_program("./bin", str(tmp_path), PATH)
