"""The verbs of every day: stop, start, status, and the instances that ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.bus.embedded_server import EmbeddedServer
from tests.boxes import boxed, instances, serving
from tests.containers import containers, web
from tests.containers import script as sh
from tests.e2e.program import run, run_process
from tests.e2e.pseudo_terminal import on_terminal
from tests.podman import Podman
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


@pytest.mark.slow
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


@pytest.mark.slow
async def test_restart_replaces_every_instance_or_one_before_it_drains(
    home: Path, server: EmbeddedServer
) -> None:
    link = ("-s", server.url)
    async with boxed(server, home, max_instances=3) as (gateway, recorder):
        assert (await run("scale", "web", 2, "--wait", *link, cwd=home)).code == 0
        before = [info.id for info in await instances(gateway, "web")]
        done = await run("restart", "web", "--wait", *link, cwd=home)
        assert (done.code, done.out) == (0, "2 instances of web replaced\n"), done.err
        after = [info.id for info in await serving(gateway, "web", 2)]
        assert not {*before} & {*after}
        one = await run("restart", after[0], "--wait", "--json", *link, cwd=home)
        assert one.json["affected"] == 1
        last = [info.id for info in await serving(gateway, "web", 2)]
        assert after[1] in last
        assert after[0] not in last
        states = [(event.instance_id, event.to_state.value) for _, event in recorder.events]
        [new] = {*last} - {after[1]}
        assert states.index((new, "Ready")) < states.index((after[0], "Draining"))
        history = await run("history", "web", *link, cwd=home)
        assert f"restart of {after[0]}" in history.out
        for name in ("webb", "web-zzz"):
            wrong = await run("restart", name, *link, cwd=home)
            assert (wrong.code, "known: " in wrong.err) == (1, True)
        assert (await run("stop", "web", "--wait", *link, cwd=home)).code == 0
        none = await run("restart", "web", *link, cwd=home)
        assert (none.code, "does not live" in none.err) == (1, True)


@pytest.mark.slow
async def test_restart_works_on_a_host_that_is_full(home: Path, server: EmbeddedServer) -> None:
    link = ("-s", server.url)
    async with boxed(server, home, max_instances=1) as (gateway, _):
        assert (await run("scale", "web", 1, "--wait", *link, cwd=home)).code == 0
        [old] = await instances(gateway, "web")
        assert (await run("restart", old.id, "--wait", *link, cwd=home)).code == 0
        [new] = await serving(gateway, "web", 1)
        assert new.id != old.id


@pytest.mark.slow
async def test_exec_runs_a_command_with_the_directory_and_the_environment_of_an_instance(
    home: Path, server: EmbeddedServer
) -> None:
    link = ("-s", server.url)
    async with boxed(server, home, service_table("web", env={"GREETING": "hello"})) as (gateway, _):
        assert (await run("scale", "web", 1, "--wait", *link, cwd=home)).code == 0
        [info] = await instances(gateway, "web")
        where = ("--data-dir", next(path.parent for path in home.rglob("journal.db")))
        script = "echo $GREETING from $BOX_INSTANCE_ID; pwd; exit 7"
        done = await run_process("exec", info.id, *where, "--", "sh", "-c", script, cwd=home)
        assert (done.code, done.out.splitlines()) == (7, [f"hello from {info.id}", str(home)])
        missing = await run_process("exec", info.id, *where, "--", "no-such-program", cwd=home)
        assert (missing.code, "no-such-program cannot be run" in missing.err) == (1, True)
        elsewhere = await run("exec", info.id, *link, "--", "sh", cwd=home)
        assert (elsewhere.code, "it runs on host box-a" in elsewhere.err) == (1, True)


async def test_exec_runs_a_command_in_a_container(
    home: Path, server: EmbeddedServer, podman: Podman
) -> None:
    async with boxed(server, home, web(), **containers(podman)) as (gateway, _):
        assert (await run("scale", "web", 1, "--wait", "-s", server.url, cwd=home)).code == 0
        [info] = await instances(gateway, "web")
        where = ("--data-dir", next(path.parent for path in home.rglob("journal.db")))
        script = "echo $BOX_INSTANCE_ID; test -t 0; exit $?"
        async with on_terminal("exec", info.id, *where, "--", *sh(script), cwd=home) as terminal:
            assert await terminal.wait() == 0, terminal.lines
            assert info.id in terminal.lines


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["exec", "web-a"], "no command is given"),
        (["ps", "--all", "--local"], "leave --all out"),
        (["ps", "--since", "1h"], "give --all, too"),
        (["stop"], "SERVICE is missing"),
        (["start", "a.b"], "is not a name"),
    ],
)
async def test_wrong_usage_is_explained(words: list[str], problem: str, home: Path) -> None:
    result = await run(*words, cwd=home)
    assert (result.code, problem in result.err) == (2, True), result.err
