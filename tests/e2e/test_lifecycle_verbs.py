"""The verbs of every day: stop, start, status, and the instances that ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.bus.embedded_server import EmbeddedServer
from tests.boxes import boxed
from tests.e2e.program import run
from tests.e2e.pseudo_terminal import on_terminal
from tests.support import eventually, service_table

CRASH = service_table("bad", command=["sh", "-c", "echo cannot open database >&2; exit 3"])


async def test_start_restores_the_count_that_stop_remembers(
    home: Path, server: EmbeddedServer
) -> None:
    link = ("-s", server.url)
    async with boxed(server, home, service_table("web"), service_table("api")):
        never = await run("start", "api", *link, cwd=home)
        assert (never.code, "no count of api is remembered" in never.err) == (1, True)
        assert (await run("scale", "web", 2, "--wait", *link, cwd=home)).code == 0
        stopped = await run("stop", "web", "--wait", *link, cwd=home)
        assert (stopped.code, stopped.out.startswith("web scaled to 0 ")) == (0, True)
        assert "`box-bridge start web` restores 2" in stopped.err
        assert (await run("stop", "web", *link, cwd=home)).code == 0  # it stays remembered
        status = await run("status", "web", *link, cwd=home)
        assert status.out.startswith("web: 0 wanted, 0 serving; stopped: `box-bridge start web`")
        started = await run("start", "web", "--wait", "--json", *link, cwd=home)
        assert (started.code, started.json["target_replicas"]) == (0, 2)
        [web] = [
            one
            for one in (await run("services", "--json", *link, cwd=home)).json["services"]
            if one["name"] == "web"
        ]
        assert (web["wanted"], web["ready"], web["before_stop"]) == (2, 2, 0)
        for verb in ("stop", "start", "status"):
            wrong = await run(verb, "webb", *link, cwd=home)
            assert (wrong.code, "no service webb; known: api, web" in wrong.err) == (1, True)


async def test_ps_all_and_status_give_the_reason_the_exit_code_and_the_next_try(
    home: Path, server: EmbeddedServer
) -> None:
    link = ("-s", server.url)
    timing = "[timing]\nbackoff_first = 60\nbackoff_max = 60\nsample = 0.1"
    async with boxed(server, home, service_table("web"), CRASH, timing=timing):
        assert (await run("scale", "web=1", "bad=1", *link, cwd=home)).code == 0

        async def failed() -> dict[str, object] | None:
            seen = (await run("ps", "bad", "--all", "--json", *link, cwd=home)).json
            return next((one for one in seen["ended"] if one["next_try"]), None)

        one = await eventually(failed, what="the failed instance has a next try")
        assert (one["state"], one["exit_code"], one["host"]) == ("Failed", 3, "box-a")
        assert "cannot open database" in str(one["reason"])
        assert (await run("stop", "web", "--wait", *link, cwd=home)).code == 0
        listed = await run("ps", "-a", *link, cwd=home)
        assert "stopped" in listed.out
        assert "scaled down" in listed.out
        names = (await run("ps", "--all", "-o", "name", *link, cwd=home)).out.split()
        assert one["id"] in names
        assert (await run("ps", "--all", "--since", "0s", "-o", "name", *link, cwd=home)).out == ""
        page = (await run("status", "bad", "--json", *link, cwd=home)).json
        assert page["services"][0]["failed"][0]["instance_id"] == one["id"]
        assert page["failures"][0]["id"] == one["id"]
        assert page["decisions"][-1]["after"] == 1
        async with on_terminal("status", "bad", *link, cwd=home, columns=80) as terminal:
            assert await terminal.wait() == 0
            text = "\n".join(terminal.lines)
            for part in ("bad: 1 wanted, 0 serving", "Last failures", "Last decisions", "0 → 1"):
                assert part in text
            assert str(one["id"]) in text
        fleet = await run("status", *link, cwd=home)
        assert fleet.out.startswith("1 host live; ")
        assert "web: 0 wanted, 0 serving" in fleet.out


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["ps", "--all", "--local"], "leave --all out"),
        (["ps", "--since", "1h"], "give --all, too"),
        (["stop"], "SERVICE is missing"),
        (["start", "a.b"], "is not a name"),
    ],
)
async def test_wrong_usage_is_explained(words: list[str], problem: str, home: Path) -> None:
    result = await run(*words, cwd=home)
    assert (result.code, problem in result.err) == (2, True), result.err
