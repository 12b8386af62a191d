"""The names that shells complete: which parameters take them, and what a TAB costs."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from cyclopts import App

from bridge.cli import main
from bridge.cli.app import VERBS, build_app
from bridge.cli.completion import HOSTS, KINDS, SERVICES, cache_file, complete
from tests.unit.cli.test_app import imported_by


def environment(directory: Path, **more: str) -> dict[str, str]:
    return {"HOME": str(directory), "PATH": os.environ["PATH"], **more}


def store(kind: str, names: str, environ: dict[str, str], *link: str, age: float = 0) -> None:
    file = cache_file(link, kind, environ)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(names)
    os.utime(file, (time.time() - age, time.time() - age))


def test_the_verbs_that_take_names_are_those_whose_parameters_complete_them() -> None:
    app = build_app(complete=True)
    found = {verb for verb in VERBS if _completes(app, verb)}
    assert found == set(KINDS)


def _completes(app: App, verb: str) -> bool:
    command = app
    for word in verb.split():
        command = command[word]
    return any(item.parameter.completer for item in command.assemble_argument_collection())


def test_the_names_of_the_cache_are_printed_after_the_mark_of_the_script(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environ = environment(tmp_path)
    store(SERVICES, "api\nweb", environ)
    complete(["scale", "w"], environ=environ)
    assert capsys.readouterr().out == "\n\x1fbegin\napi\nweb\n"


def test_another_server_or_prefix_has_names_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environ = environment(tmp_path)
    store(HOSTS, "box-a", environ)
    store(HOSTS, "box-b", environ, "-s", "nats://b")
    store(HOSTS, "box-c", environ, "--prefix=c")
    for words, name in (([], "box-a"), (["-s", "nats://b"], "box-b"), (["--prefix=c"], "box-c")):
        complete(["drain", *words, ""], environ=environ)
        assert capsys.readouterr().out.split()[-1] == name


def test_a_cache_that_cannot_be_made_is_silent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    environ = environment(tmp_path, XDG_CACHE_HOME=str(tmp_path / "file"))
    complete(["scale", ""], environ=environ)
    assert capsys.readouterr() == ("\n\x1fbegin\n", "")


def test_a_verb_that_takes_no_names_completes_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["__complete", "init", ""]) == 0
    assert capsys.readouterr().out == "\n\x1fbegin\n"


def test_a_tab_imports_no_library(tmp_path: Path) -> None:
    environ = environment(tmp_path)
    store(SERVICES, "web", environ)
    code = f"import os; os.environ = {environ}; from bridge.cli import main; "
    modules = imported_by(f"{code}main(['__complete', 'scale', 'w'])")
    assert "bridge.cli.completion" in modules
    assert not modules & {"cyclopts", "rich", "msgspec", "asyncio", "nats", "subprocess"}
