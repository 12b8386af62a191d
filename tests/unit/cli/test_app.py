"""The verbs: their help, and that nothing is imported before it is needed."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from cyclopts import App
from rich.console import Console

from bridge.cli import main
from bridge.cli.app import NAME, VERBS, build_app, overview
from bridge.cli.deferred_import import defer_import
from bridge.version import VERSION
from tests.paths import REPOSITORY


def imported_by(code: str) -> set[str]:
    """The modules that a new process has imported after `code`."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print('\\n'.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )
    return set(done.stdout.splitlines())


def help_of(verb: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([*verb.split(), "--help"]) == 0
    return capsys.readouterr().out


def docstring(verb: str) -> str:
    name = verb.replace(" ", "_")
    function = getattr(importlib.import_module(f"bridge.cli.commands.{name}"), name)
    return inspect.cleandoc(function.__doc__)


def test_the_overview_is_what_cyclopts_prints(capsys: pytest.CaptureFixture[str]) -> None:
    app: App = build_app(complete=True)
    app.help_print([], console=Console(width=80))
    assert overview() == capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_without_a_verb_is_the_overview(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    assert capsys.readouterr().out == overview()


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_begins_with_its_line_in_the_overview(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third, *_ = help_of(verb, capsys).splitlines()
    assert first.startswith(f"Usage: {NAME} {verb}")
    assert (second, third) == ("", VERBS[verb])


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_has_an_example_and_fits_80_columns(verb: str) -> None:
    lines = docstring(verb).splitlines()
    assert any(line.startswith("    ") and f"{NAME} {verb}" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_the_help_of_a_group_lists_its_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert f"check  {VERBS['config check']}" in help_of("config", capsys)


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert version(NAME) == VERSION
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{VERSION}\n"


# ── what is imported ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["version"]])
def test_help_and_version_import_no_library(arguments: list[str]) -> None:
    modules = imported_by(f"from bridge.cli import main; main({arguments})")
    assert not modules & {"cyclopts", "rich", "msgspec", "asyncio", "nats", "bridge.protocol"}


def test_no_verb_imports_asyncio_the_bus_or_a_box_before_it_runs() -> None:
    modules = imported_by("from bridge.cli.app import build_app; build_app(complete=True)")
    assert {f"bridge.cli.commands.{verb.replace(' ', '_')}" for verb in VERBS} <= modules
    assert not modules & {"asyncio", "nats", "aiohttp", "bridge.config", "bridge.box"}
    assert not [name for name in modules if name.startswith(("bridge.bus.", "bridge.box."))]


def test_the_verbs_of_a_gateway_import_no_box_and_no_aiohttp() -> None:
    verbs = ["scale web 1", "ps", "events", "routes", "timeline web", "hosts", "services"]
    verbs += ["cordon box-a", "uncordon box-a", "drain box-a", "rebalance", "history web"]
    verbs += ["plan web 1"]
    modules = imported_by(
        "from bridge.cli import main\n"
        f"for verb in {verbs}:\n"
        "    assert main([*verb.split(), '-s', 'nats://127.0.0.1:99999']) == 2"
    )
    assert {"bridge.bus.core.connection", "bridge.gateway.client"} <= modules
    assert not [name for name in modules if name.startswith("bridge.box")]
    assert "aiohttp.client" not in modules


def test_a_deferred_import_is_done_when_an_attribute_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "deferred_module.py").write_text("LOADED = True")
    monkeypatch.syspath_prepend(tmp_path)
    defer_import("deferred_module")
    stand_in = importlib.import_module("deferred_module")
    assert "LOADED" not in vars(stand_in)
    assert stand_in.LOADED
    assert "LOADED" in vars(sys.modules.pop("deferred_module"))


def test_a_module_that_is_not_installed_is_not_deferred() -> None:
    defer_import("no_such_module")
    assert "no_such_module" not in sys.modules
