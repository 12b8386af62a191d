"""The verbs: help, wrong usage, and what they say with and without a Box."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import pytest

from bridge.bus.embedded_server import EmbeddedServer
from bridge.protocol import ScaleResponse, decode
from tests.boxes import boxed
from tests.e2e.program import Finished, environment, run, running
from tests.paths import REPOSITORY
from tests.support import eventually, service_table

VERBS = ["up", "box", "scale", "ps", "events", "routes", "timeline", "relay", "register", "logs"]
VERBS += ["config", "config check", "doctor", "demo", "version"]
VERBS += ["hosts", "services", "cordon", "drain", "uncordon", "rebalance", "history", "plan"]
VERBS += ["bench"]


@pytest.mark.parametrize("verb", ["", *VERBS])
async def test_every_verb_has_help_that_says_what_it_does(verb: str, tmp_path: Path) -> None:
    told = await run(*verb.split(), "--help", cwd=tmp_path)
    assert told.code == 0
    assert told.out.startswith("Usage: box-bridge")
    assert len(told.out.splitlines()) > 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nope"], "Unknown command"),
        (["scale", "web"], "REPLICAS"),
        (["scale", "web", "x"], "unable to convert"),
        (["scale", "web", "-1"], "Must be >= 0"),
        (["scale", "web", "4294967296"], "Must be <= 4294967295"),
        (["scale", "web", "1", "--vcpus", "256"], "Must be <= 255"),
        (["scale", "web", "1", "--env", "x"], "must be KEY=VALUE"),
        (["scale", "web", "1", "--timeout", "0"], "Must be > 0"),
        (["scale", "web", "1", "--timeout", "inf"], "Must be <= 86400"),
        (["ps", "-s", "nats://127.0.0.1:99999"], "is not a NATS URL"),
        (["scale", "web", "1", "--nope"], "Unknown option"),
        (["ps", "--context", "none"], "context none"),
        (["up", "-c", "none.toml"], "none.toml: cannot be read"),
        (["config", "check"], "no service is configured"),
        (["logs", "a.b"], "is not a name"),
        (["box", "--on-exit", "stay"], "leave"),
        (["ps", "--local", "--watch"], "looks once"),
        (["cordon", "*"], "is not a name"),
        (["drain"], "HOST"),
        (["plan", "web", "-1"], "Must be >= 0"),
        (["bench", "--only", "nope"], "there is no row nope"),
    ],
)
async def test_wrong_usage_is_told_and_exits_with_2(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    told = await run(*arguments, cwd=tmp_path)
    assert told.code == 2
    assert said in told.err


@pytest.mark.parametrize(
    "arguments", [["scale", "web", "1"], ["ps"], ["events"], ["routes"], ["ps", "--json"]]
)
async def test_no_server_is_told_and_exits_with_3(arguments: list[str], tmp_path: Path) -> None:
    told = await run(*arguments, "-s", "nats://127.0.0.1:1", cwd=tmp_path)
    assert told.code == 3
    assert "cannot connect to NATS at nats://127.0.0.1:1: connection refused" in told.err
    assert told.out == ""


async def test_a_host_without_a_journal_says_so_when_it_alone_is_asked(tmp_path: Path) -> None:
    told = await run("ps", "--local", cwd=tmp_path)
    assert (told.code, told.out) == (1, "")
    assert f"there is no journal at {tmp_path / 'data' / 'journal.db'}" in told.err


async def test_a_journal_that_cannot_be_read_is_told_beside_the_silence(home: Path) -> None:
    (home / "data").mkdir()
    (home / "data" / "journal.db").write_bytes(b"not SQLite" * 999)
    told = await run("ps", "-s", "nats://127.0.0.1:1", cwd=home)
    assert (told.code, told.out) == (3, "")
    assert "journal.db cannot be read: file is not a database" in told.err
    assert "cannot connect to NATS at nats://127.0.0.1:1" in told.err


async def test_config_check_says_what_it_comes_to(home: Path) -> None:
    told = await run("config", "check", cwd=home, BOX_BRIDGE_MAX_INSTANCES="3")
    assert told.code == 0
    assert "host box-a: at most 3 instances at 127.0.0.1" in told.out
    assert told.out.rstrip().endswith("ok")
    found = (await run("config", "check", "--json", cwd=home, NATS_PASSWORD="secret")).json
    assert (found["ok"], found["box"]["max_instances"]) == (True, 5)
    assert found["services"]["web"]["probe"]["http"] == "/"
    assert found["nats"]["password"] == "(set)"
    (home / "box.toml").write_text("[box]\nmax_instance = 3")
    wrong = await run("config", "check", cwd=home)
    assert wrong.code == 2
    assert "did you mean `max_instances`?" in wrong.err


async def test_a_password_in_a_url_is_never_shown(home: Path) -> None:
    url = "nats://me:secret@127.0.0.1:1,nats://s3cret@127.0.0.1:1"
    for verb in (["ps"], ["config", "check"], ["config", "check", "--json"]):
        told = await run(*verb, cwd=home, NATS_URL=url)
        assert "nats://***@127.0.0.1:1" in told.out + told.err
        assert "cret" not in told.out + told.err
    told = await run("ps", cwd=home, NATS_URL="nats://me:secret@127.0.0.1:99999")
    assert told.code == 2
    assert "cret" not in told.out + told.err


async def test_version_names_what_it_runs_on(tmp_path: Path) -> None:
    found = (await run("version", "--json", cwd=tmp_path)).json
    assert found["nats-py"].startswith("2.16")
    assert found["nats-server"].startswith("2.")
    told = await run("version", cwd=tmp_path)
    assert told.out.startswith(f"box-bridge {found['box-bridge']}")
    assert (await run("--version", cwd=tmp_path)).out.strip() == found["box-bridge"]


async def test_what_a_box_says_becomes_the_exit_code(home: Path, server: EmbeddedServer) -> None:
    nobody = await run("scale", "web", 1, "-s", server.url, cwd=home)
    assert nobody.code == 3
    assert "no Box answers on box.scale" in nobody.err
    async with boxed(server, home, service_table("web"), max_instances=2):

        async def scale(*arguments: object) -> Finished:
            return await run("scale", *arguments, "-s", server.url, cwd=home)

        refused = await scale("nope", 1)
        assert (refused.code, refused.out) == (1, "")
        assert "nope: unknown service 'nope'" in refused.err
        capped = await scale("web", 9, "--json")
        assert capped.code == 1
        assert decode(ScaleResponse, capped.out.encode()).target_replicas == 2
        image = await scale("web", 1, "--image", "nginx")
        assert (image.code, "cannot be honoured" in image.err) == (1, True)
        bad_name = await scale("a.b", 1)
        assert (bad_name.code, "is not a name" in bad_name.err) == (2, True)
        dry = await scale("web", 1, "--dry-run", "--json")
        assert (dry.code, dry.json["target_replicas"]) == (0, 1)
        twice = [await scale("web", 1, "--request-id", "r-1", "--json") for _ in range(2)]
        assert [t.json["request_id"] for t in twice] == ["r-1", "r-1"]
        other = await scale("web", 0, "--request-id", "r-1")
        assert (other.code, "another request" in other.err) == (1, True)
        overrides = ("--env", "A=1", "--env", "B=x=y", "--vcpus", 1, "--memory-mib", 512)
        assert (await scale("web", 1, *overrides, "--wait")).code == 0
        late = await scale("web", 1, "--memory-mib", 8, "--wait", "--timeout", 0.3)
        assert (late.code, "Ready after 0.3 s" in late.err) == (3, True)


async def test_watching_goes_on_until_ctrl_c(home: Path, server: EmbeddedServer) -> None:
    async with boxed(server, home):
        async with running("ps", "--watch", "--json", "-s", server.url, cwd=home) as watch:
            await eventually(lambda: len(watch.out) >= 2)
            assert json.loads(watch.out[0])["total"] == 0
            watch.process.send_signal(signal.SIGINT)
            assert await watch.ended() == 0
        async with running("ps", "-w", "-s", server.url, cwd=home) as watch:
            await watch.said("no instances")
            await run("scale", "web", 1, "--wait", "-s", server.url, cwd=home)
            await watch.said("web .* ready")
            await server.kill()
            await watch.said("no answer|cut off")
            await server.start()
            shown = len(watch.out)
            await eventually(lambda: len(watch.out) > shown)
            watch.process.send_signal(signal.SIGINT)
            assert await watch.ended() == 0


@pytest.mark.parametrize("flags", [["--watch"], ["--watch", "--json"]])
async def test_a_reader_that_leaves_is_no_failure(
    flags: list[str], home: Path, server: EmbeddedServer
) -> None:
    async with boxed(server, home):
        await run("scale", "web", 1, "--wait", "-s", server.url, cwd=home)
        script = '{ "$@"; echo $? > code; } | head -n 1'
        verb = [sys.executable, "-m", "bridge.cli", "ps", *flags, "-s", server.url]
        shell = await asyncio.create_subprocess_exec(
            *("sh", "-c", script, "sh", *verb),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=home,
            env=environment(PYTHONPATH=str(REPOSITORY)),
        )
        async with asyncio.timeout(20):
            out, err = await shell.communicate()
        assert len(out.splitlines()) == 1
        assert ((home / "code").read_text(), err) == ("0\n", b"")
