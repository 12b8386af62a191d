"""Options that hands know from docker, kubectl and nomad."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bridge.bus.embedded_server import EmbeddedServer
from bridge.protocol import format_time
from tests.boxes import boxed
from tests.e2e.program import run
from tests.e2e.pseudo_terminal import on_terminal
from tests.support import service_table


async def test_one_scale_takes_several_services_and_reports_the_worst_code(
    home: Path, server: EmbeddedServer
) -> None:
    tables = service_table("web"), service_table("api")
    link = ("-s", server.url)
    async with boxed(server, home, *tables, max_instances=3):
        done = await run("scale", "web=1", "api=1", "--wait", *link, cwd=home)
        assert done.code == 0, done.err
        assert [line.split(" (")[0] for line in done.out.splitlines() if "scaled" in line] == [
            "web scaled to 1",
            "api scaled to 1",
        ]
        capped = await run("scale", "web=9", "api=1", "--json", *link, cwd=home)
        answers = [json.loads(line) for line in capped.out.splitlines()]
        assert (capped.code, [one["target_replicas"] for one in answers]) == (4, [2, 1])
        wrong = await run("scale", "webb=1", "api", "--replicas", 1, *link, cwd=home)
        assert (wrong.code, "webb: no service webb; known: api, web" in wrong.err) == (1, True)
        assert wrong.out.startswith("api scaled to 1 ")
        for words in (["web", "-n", 0], ["--replicas=0", "api"]):
            assert (await run("scale", *words, "--wait", *link, cwd=home)).code == 0


@pytest.mark.slow
async def test_each_list_has_the_forms_of_o(home: Path, server: EmbeddedServer) -> None:
    link = ("-s", server.url)
    async with boxed(server, home):
        scaled = await run("scale", "web", 1, "--wait", "-o", "json", *link, cwd=home)
        [info] = (
            scaled.json["instances"]
            or (await run("ps", "--json", *link, cwd=home)).json["instances"]
        )
        names = {"ps": info["id"], "routes": info["id"], "hosts": "box-a", "services": "web"}
        for verb, name in names.items():
            assert (await run(verb, "-o", "name", *link, cwd=home)).out == f"{name}\n"
            assert verb != "ps" or (await run(verb, "-o", "json", *link, cwd=home)).json["total"]
            document = (await run(verb, "--output=yaml", *link, cwd=home)).out
            assert document.startswith("---\n")
            assert f": {name}\n" in document
        async with on_terminal("ps", "-o", "wide", *link, cwd=home, columns=60) as terminal:
            assert await terminal.wait() == 0
            assert {"REQS", "CREATED", "READY"} <= set(terminal.lines[0].split())
        entries = (await run("history", "web", "-n", 1, "-o", "json", *link, cwd=home)).json
        assert [entry["after"] for entry in entries["entries"]] == [1]
        later = format_time(datetime.now(UTC) - timedelta(hours=1))
        for words in (["events"], ["timeline", "web", "--since", "2h"]):
            seen = await run(*words, "--until", later, "--json", *link, cwd=home)
            assert seen.code == 0, seen.err
            assert info["id"] not in seen.out
            assert info["id"] in (await run(*words, "--until=now", "--json", *link, cwd=home)).out


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["scale"], "SERVICE is missing"),
        (["scale", "web=1", "web=2"], "cannot have 1 and 2 instances"),
        (["scale", "web=1", "api=1", "--request-id", "x"], "belongs to one request"),
        (["ps", "-o", "yaml", "--json"], "contradicts"),
        (["ps", "-o", "xml"], "xml"),
        (["events", "--until", "tomorrow"], "--until"),
        (["events", "--until", "1h", "--durable", "d"], "leave --durable out"),
        (["timeline", "web", "--since", "1h", "--until", "2h"], "is not after"),
        (["config", "check", "box.toml", "-c", "other.toml"], "give one of them"),
    ],
)
async def test_a_contradiction_is_wrong_usage(words: list[str], problem: str, home: Path) -> None:
    result = await run(*words, cwd=home)
    assert (result.code, problem in result.err) == (2, True), result.err


async def test_config_check_takes_the_file_as_an_argument(home: Path) -> None:
    (home / "box.toml").rename(home / "mine.toml")
    assert (await run("config", "check", "mine.toml", cwd=home)).out.endswith("ok\n")
    missing = await run("config", "check", "none.toml", cwd=home)
    assert (missing.code, "none.toml: cannot be read" in missing.err) == (2, True)
