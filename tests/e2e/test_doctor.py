"""`box-bridge doctor` as a user has it: what it prints, and its exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.bus.embedded_server import EmbeddedServer
from tests.e2e.program import run
from tests.support import service_table


async def test_doctor_exits_with_0_when_no_check_fails(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    result = await run("doctor", "-s", server.url, cwd=tmp_path)
    assert result.code == 0, result.out + result.err
    lines = result.out.splitlines()
    assert [line.split()[1] for line in lines] == [
        *("nats", "jetstream", "permissions", "topology", "limits", "clock")
    ]
    assert lines[0].startswith("ok   nats")
    assert result.err == ""


@pytest.mark.usefixtures("impatient")
async def test_doctor_exits_with_1_when_a_check_fails_and_prints_cures(
    tmp_path: Path, unused_port: int
) -> None:
    (tmp_path / "box.toml").write_text(
        f'[nats]\nurl = "nats://127.0.0.1:{unused_port}"\n'
        + service_table("web", command=["no-such-program"])
    )
    result = await run("doctor", cwd=tmp_path)
    assert result.code == 1
    failed = [line for line in result.out.splitlines() if line.startswith("fail")]
    assert [line.split()[1] for line in failed] == ["nats", "runtime"]
    assert all("Cure: " in line for line in failed)
    assert result.err == ""


async def test_doctor_prints_one_json_object(server: EmbeddedServer, tmp_path: Path) -> None:
    result = await run("doctor", "-s", server.url, "--json", cwd=tmp_path)
    assert result.code == 0
    assert result.json["ok"] is True
    assert result.json["checks"][2] == {
        "check": "permissions",
        "status": "ok",
        "says": "all that a gateway needs is allowed (15 subjects tried); "
        "this user may do everything: see docs/how-to/set-up-authentication.md",
        "cure": "",
    }
