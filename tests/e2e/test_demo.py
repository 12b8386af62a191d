"""`make demo`: the main job, each step verified; and a demo that can fail."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from bridge import observe
from bridge.cli.commands.demo import demo
from bridge.demo import host
from tests.boxes import labelled
from tests.e2e.program import run_process, running


@pytest.mark.slow
async def test_the_demo_succeeds_and_leaves_nothing(tmp_path: Path) -> None:
    result = await run_process("demo", "--json", cwd=tmp_path, TMPDIR=str(tmp_path))
    report = result.json
    assert result.code == 0, report["steps"][-1]
    assert report["ok"]
    assert len(report["steps"]) == 15
    assert all(step["ok"] for step in report["steps"])
    assert {event["to_state"] for event in report["events"]} >= {"Failed", "Busy", "Stopped"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_demo_leaves_nothing_and_reports_no_success(
    number: signal.Signals, tmp_path: Path
) -> None:
    async with running("demo", cwd=tmp_path, TMPDIR=str(tmp_path)) as program:
        await program.wait_for("✓ Each endpoint answers")
        [directory] = tmp_path.iterdir()
        instances = [str(path) for path in (directory / "data" / "instances").iterdir()]
        program.process.send_signal(number)
        assert await program.wait() == 130
    assert any(line.startswith("✗") for line in program.out)
    assert "interrupted" in "\n".join(program.out)
    assert not [pid for instance in instances for pid in labelled(instance)]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
async def test_a_step_that_fails_makes_the_demo_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hasty = host._CONFIG.replace("[services.api]", "drain_timeout = 0.2\n\n[services.api]")
    monkeypatch.setattr(host, "_CONFIG", hasty)
    monkeypatch.setattr(observe, "configure_logging", lambda level: None)  # it is this process's
    assert await demo(json=True) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["ok"]
    *held, failed = report["steps"]
    assert all(step["ok"] for step in held)
    assert failed["name"].startswith("web 3 → 1 with a 4 s request on each")
    assert not failed["ok"]
    assert failed["found"]
