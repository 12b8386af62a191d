"""`bench`, as a user has it."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.e2e.program import run


@pytest.mark.slow
async def test_bench_measures_a_row_and_writes_its_files(tmp_path: Path) -> None:
    result = await run(
        *("bench", "--embedded", "--only", "consume", "--rounds", "2", "--effort", "0.01"),
        *("--out", "found", "--json"),
        cwd=tmp_path,
    )
    assert result.code in (0, 1)  # so little work proves nothing
    assert "consume: round 2 of 2" in result.err
    assert json.loads((tmp_path / "found" / "bench.json").read_text()) == result.json
    [row] = result.json["rows"]
    assert (row["name"], len(row["ours"]), len(row["floor"])) == ("consume", 2, 2)
    assert result.json["server"]["sync_interval"] == "always"
    ElementTree.parse(tmp_path / "found" / "bench.svg")  # noqa: S314 - our own


@pytest.mark.usefixtures("impatient")
async def test_bench_without_a_server_exits_with_3(tmp_path: Path) -> None:
    result = await run("bench", "-s", "nats://127.0.0.1:1", cwd=tmp_path)
    assert result.code == 3
    assert "127.0.0.1:1" in result.err
