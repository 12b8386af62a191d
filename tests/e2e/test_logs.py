"""`logs` from any machine: of several hosts, of ended instances, and of one stream."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from bridge.bus.embedded_server import EmbeddedServer
from tests.boxes import boxed, instances
from tests.containers import containers, script, web
from tests.e2e.program import run, running
from tests.e2e.pseudo_terminal import on_terminal
from tests.fleet import Fleet
from tests.paths import HTTP_SERVICE
from tests.podman import SERVE, Podman
from tests.support import eventually, service_table

SCRIPT = (
    'echo "out of $BOX_INSTANCE_ID"; echo oops >&2; printf "a\\033[31mb\\377\\n"; '
    f'exec {sys.executable} -S -E {HTTP_SERVICE} "$PORT"'
)
TALKER = service_table("web", command=["sh", "-c", SCRIPT])


async def test_logs_of_a_service_come_from_every_host(
    tmp_path: Path, server: EmbeddedServer
) -> None:
    link = ("-s", server.url)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    async with Fleet.of(server, tmp_path, "box-a", "box-b", max_instances=1) as fleet:
        placed = await fleet.run(2)
        assert set(placed.values()) == {"box-a", "box-b"}
        shown = await run("logs", "web", *link, cwd=elsewhere)
        assert shown.code == 0, shown.err
        assert {line.split()[0] for line in shown.out.splitlines()} == set(placed)
        one = next(iter(placed))
        own = await run("logs", one, "--tail", 1, "--timestamps", *link, cwd=elsewhere)
        assert len(own.out.splitlines()) == 1
        assert one not in own.out
        assert own.out[:4].isdecimal()


async def test_streams_times_and_the_last_lines_are_selected_also_of_ended_instances(
    home: Path, server: EmbeddedServer
) -> None:
    link = ("-s", server.url)
    async with boxed(server, home, TALKER) as (gateway, _):
        assert (await run("scale", "web", 1, "--wait", *link, cwd=home)).code == 0
        [info] = await instances(gateway, "web")
        for ended in (False, True):
            err = await run("logs", info.id, "--stderr", *link, cwd=home)
            assert err.out.splitlines()[0] == "oops"
            lines = [
                json.loads(line)
                for line in (
                    await run("logs", "web", "--stdout", "--json", *link, cwd=home)
                ).out.splitlines()
            ]
            assert lines[0]["line"] == f"out of {info.id}"
            assert {line["stream"] for line in lines} == {"stdout"}
            assert lines[1]["line"] == "a\x1b[31mb\ufffd"
            assert (await run("logs", info.id, "-n", 0, *link, cwd=home)).out == ""
            recent = await run("logs", info.id, "--since", "1h", *link, cwd=home)
            assert recent.out.startswith(("out", "oops"))
            old = await run("logs", info.id, "--until", "1h", *link, cwd=home)
            assert "oops" not in old.out

            async def is_past() -> bool:  # the time of a line is known when the Box has noted it
                new = await run("logs", info.id, "--since", "0s", *link, cwd=home)
                return "oops" not in new.out

            await eventually(is_past)
            if not ended:
                assert (await run("stop", "web", "--wait", *link, cwd=home)).code == 0
        async with on_terminal("logs", info.id, *link, cwd=home) as terminal:
            assert await terminal.wait() == 0
            assert "\x1b[31m" not in terminal.read()
            assert any("a\ufffd[31mb" in line for line in terminal.lines)


@pytest.mark.slow
async def test_a_service_is_followed_while_instances_come_and_go(
    home: Path, server: EmbeddedServer
) -> None:
    link = ("-s", server.url)
    async with boxed(server, home, TALKER) as (gateway, _):
        assert (await run("scale", "web", 1, "--wait", *link, cwd=home)).code == 0
        [first] = await instances(gateway, "web")
        async with (
            running("logs", "web", "-f", "--stdout", *link, cwd=home) as service,
            running("logs", first.id, "-f", *link, cwd=home) as one,
        ):
            await service.wait_for(f"out of {first.id}")
            await one.wait_for("oops")
            assert (await run("stop", "web", "--wait", *link, cwd=home)).code == 0
            assert await one.wait() == 0  # its instance has ended
            assert (await run("start", "web", "--wait", *link, cwd=home)).code == 0
            [second] = await instances(gateway, "web")
            await service.wait_for(f"{second.id}  out of {second.id}")
            assert service.process.returncode is None


@pytest.mark.slow
async def test_a_slow_reader_gets_every_line_and_holds_nothing_at_its_box(
    home: Path, server: EmbeddedServer
) -> None:
    lines = 15_000
    script = f'i=0; while [ $i -lt {lines} ]; do echo "line $i of a long log"; i=$((i+1)); done; '
    table = service_table("web", command=["sh", "-c", script + SCRIPT], log_size="16MiB")
    link = ("-s", server.url)
    async with boxed(server, home, table):
        assert (await run("scale", "web", 1, "--wait", *link, cwd=home)).code == 0
        async with running("logs", "web", "-f", "--stdout", *link, cwd=home) as reader:
            await eventually(lambda: len(reader.out) > lines, what="all lines have come")
        numbers = [line.split()[2] for line in reader.out if "of a long log" in line]
        assert numbers == [str(number) for number in range(lines)]


async def test_logs_of_a_container_come_from_its_engine_and_then_from_its_files(
    home: Path, server: EmbeddedServer, podman: Podman
) -> None:
    link = ("-s", server.url)
    talk = web(*script("echo first; echo oops >&2; exec " + shlex.join(SERVE)))
    async with boxed(server, home, talk, **containers(podman)) as (gateway, _):
        assert (await run("scale", "web", 1, "--wait", *link, cwd=home)).code == 0
        [info] = await instances(gateway, "web")
        async with running("logs", info.id, "-f", "--stdout", *link, cwd=home) as follow:
            await follow.wait_for("first")
            for ended in (False, True):
                err = await run("logs", info.id, "--stderr", *link, cwd=home)
                assert "oops" in err.out.splitlines()
                last = await run("logs", "web", "-n", 1, "--stdout", "--json", *link, cwd=home)
                assert last.json["at"] > info.created_at.isoformat()
                if not ended:
                    assert (await run("stop", "web", "--wait", *link, cwd=home)).code == 0
            assert await follow.wait() == 0
            assert follow.out.count("first") == 1


async def test_a_name_without_logs_is_explained(home: Path, server: EmbeddedServer) -> None:
    link = ("-s", server.url)
    async with boxed(server, home):
        for name, problem in {
            "webb": "no service webb; known: web",
            "web": "web has no instances, and no logs of earlier ones are kept",
            "web-zzz": "no instance web-zzz; known: none yet",
        }.items():
            result = await run("logs", name, *link, cwd=home)
            assert (result.code, result.err) == (1, f"box-bridge: {problem}\n")
