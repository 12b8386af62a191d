"""`box-bridge doctor` as a user has it: what it prints, and its exit codes."""

from __future__ import annotations

from pathlib import Path

from bridge.bus.embedded_server import EmbeddedServer
from tests.e2e.program import run
from tests.support import service_table


async def test_it_ends_with_0_when_nothing_failed(server: EmbeddedServer, tmp_path: Path) -> None:
    told = await run("doctor", "-s", server.url, cwd=tmp_path)
    assert told.code == 0, told.out + told.err
    lines = told.out.splitlines()
    assert [line.split()[1] for line in lines] == [
        *("nats", "jetstream", "permissions", "topology", "clock")
    ]
    assert lines[0].startswith("ok   nats")
    assert told.err == ""


async def test_it_ends_with_1_when_something_failed_and_says_how_to_mend_it(
    tmp_path: Path, unused_port: int
) -> None:
    (tmp_path / "box.toml").write_text(
        f'[nats]\nurl = "nats://127.0.0.1:{unused_port}"\n'
        + service_table("web", command=["no-such-program"])
    )
    told = await run("doctor", cwd=tmp_path)
    assert told.code == 1
    failed = [line for line in told.out.splitlines() if line.startswith("fail")]
    assert [line.split()[1] for line in failed] == ["nats", "runtime"]
    assert all("Cure: " in line for line in failed)
    assert told.err == ""


async def test_it_prints_one_object_for_programs(server: EmbeddedServer, tmp_path: Path) -> None:
    told = await run("doctor", "-s", server.url, "--json", cwd=tmp_path)
    assert told.code == 0
    assert told.json["ok"] is True
    assert told.json["checks"][2] == {
        "check": "permissions",
        "status": "ok",
        "says": "all that a gateway needs is allowed (19 subjects tried)",
        "cure": "",
    }


async def test_its_help_teaches_by_example(tmp_path: Path) -> None:
    told = await run("doctor", "--help", cwd=tmp_path)
    assert "box-bridge doctor -c box.toml" in told.out
    assert "box-bridge doctor -s nats://" in told.out
