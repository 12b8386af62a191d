"""`bench`, as a user has it."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

from tests.e2e.program import run


async def test_a_row_is_measured_and_its_files_are_written(tmp_path: Path) -> None:
    told = await run(
        *("bench", "--embedded", "--only", "consume", "--rounds", "2", "--effort", "0.01"),
        *("--out", "found", "--json"),
        cwd=tmp_path,
    )
    assert told.code in (0, 1)  # so little work proves nothing
    assert "consume: round 2 of 2" in told.err
    assert json.loads((tmp_path / "found" / "bench.json").read_text()) == told.json
    [row] = told.json["rows"]
    assert (row["name"], len(row["ours"]), len(row["floor"])) == ("consume", 2, 2)
    assert told.json["server"]["sync_interval"] == "always"
    ElementTree.parse(tmp_path / "found" / "bench.svg")  # noqa: S314 - our own


async def test_without_a_server_it_says_so(tmp_path: Path) -> None:
    told = await run("bench", "-s", "nats://127.0.0.1:1", cwd=tmp_path)
    assert told.code == 3
    assert "127.0.0.1:1" in told.err
