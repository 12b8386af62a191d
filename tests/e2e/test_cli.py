"""Wrong usage, and the output and exit codes of the verbs with and without a Box."""

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
from tests.e2e.program import Result, environment, run, run_process, running
from tests.paths import REPOSITORY
from tests.support import eventually, service_table


@pytest.mark.parametrize(
    ("arguments", "message"),
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
async def test_wrong_usage_is_reported_with_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    result = await run(*arguments, cwd=tmp_path)
    assert result.code == 2
    assert message in result.err


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "arguments",
    [["scale", "web", "1"], ["ps"], ["events", "--no-follow"], ["routes"], ["ps", "--json"]],
)
async def test_an_unreachable_server_is_reported_with_exit_code_3(
    arguments: list[str], tmp_path: Path
) -> None:
    result = await run(*arguments, "-s", "nats://127.0.0.1:1", cwd=tmp_path)
    assert result.code == 3
    assert "cannot connect to NATS at nats://127.0.0.1:1: connection refused" in result.err
    assert result.out == ""


async def test_ps_local_without_a_journal_fails_and_names_its_path(tmp_path: Path) -> None:
    result = await run("ps", "--local", cwd=tmp_path)
    assert (result.code, result.out) == (1, "")
    assert f"there is no journal at {tmp_path / 'data' / 'journal.db'}" in result.err


@pytest.mark.usefixtures("impatient")
async def test_ps_reports_an_unreadable_journal_beside_the_unreachable_server(home: Path) -> None:
    (home / "data").mkdir()
    (home / "data" / "journal.db").write_bytes(b"not SQLite" * 999)
    result = await run("ps", cwd=home, NATS_URL="nats://127.0.0.1:1")
    assert (result.code, result.out) == (3, "")
    assert "journal.db is damaged: file is not a database" in result.err
    assert "cannot connect to NATS at nats://127.0.0.1:1" in result.err


async def test_config_check_prints_the_effective_settings(home: Path) -> None:
    result = await run("config", "check", cwd=home, BOX_BRIDGE_MAX_INSTANCES="3")
    assert result.code == 0
    assert "host box-a: at most 3 instances at 127.0.0.1" in result.out
    assert result.out.rstrip().endswith("ok")
    found = (await run("config", "check", "--json", cwd=home, NATS_PASSWORD="secret")).json
    assert (found["ok"], found["box"]["max_instances"]) == (True, 5)
    assert found["services"]["web"]["probe"]["http"] == "/"
    assert found["nats"]["password"] == "(set)"
    (home / "box.toml").write_text("[box]\nmax_instance = 3")
    wrong = await run("config", "check", cwd=home)
    assert wrong.code == 2
    assert "did you mean `max_instances`?" in wrong.err


@pytest.mark.usefixtures("impatient")
async def test_a_password_in_a_url_is_never_printed(home: Path) -> None:
    url = "nats://me:secret@127.0.0.1:1,nats://s3cret@127.0.0.1:1"
    for verb in (["ps"], ["config", "check"], ["config", "check", "--json"]):
        result = await run(*verb, cwd=home, NATS_URL=url)
        assert "127.0.0.1:1" in result.out + result.err
        assert "cret" not in result.out + result.err
    result = await run("ps", cwd=home, NATS_URL="nats://me:secret@127.0.0.1:99999")
    assert result.code == 2
    assert "cret" not in result.out + result.err


async def test_version_prints_the_versions_of_the_dependencies(tmp_path: Path) -> None:
    versions = (await run("version", "--json", cwd=tmp_path)).json
    assert versions["nats-py"].startswith("2.16")
    assert versions["nats-server"].startswith("2.")
    result = await run_process("version", cwd=tmp_path)
    assert result.out.startswith(f"box-bridge {versions['box-bridge']}")
    result = await run_process("--version", cwd=tmp_path)
    assert (result.code, result.out.strip()) == (0, versions["box-bridge"])


async def test_the_answer_of_a_box_becomes_the_exit_code(
    home: Path, server: EmbeddedServer
) -> None:
    nobody = await run("scale", "web", 1, "-s", server.url, cwd=home)
    assert nobody.code == 3
    assert f"no Box has run on NATS at {server.url} with prefix box yet" in nobody.err
    async with boxed(server, home, service_table("web"), max_instances=2):

        async def scale(*arguments: object) -> Result:
            return await run("scale", *arguments, "-s", server.url, cwd=home)

        refused = await scale("nope", 1)
        assert (refused.code, refused.out) == (1, "")
        assert "no service nope; known: web" in refused.err
        capped = await scale("web", 9, "--json")
        assert capped.code == 4
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


@pytest.mark.slow
async def test_ps_watch_survives_an_outage_and_ends_on_ctrl_c(
    home: Path, server: EmbeddedServer
) -> None:
    async with boxed(server, home):
        async with running("ps", "--watch", "--json", "-s", server.url, cwd=home) as watch:
            await eventually(lambda: len(watch.out) >= 2)
            assert json.loads(watch.out[0])["total"] == 0
            watch.process.send_signal(signal.SIGINT)
            assert await watch.wait() == 0
        async with running("ps", "-w", "-s", server.url, cwd=home) as watch:
            await watch.wait_for("no instances")
            await run("scale", "web", 1, "--wait", "-s", server.url, cwd=home)
            await watch.wait_for("web .* ready")
            await server.kill()
            await watch.wait_for("no answer|cut off")
            await server.start()
            shown = len(watch.out)
            await eventually(lambda: len(watch.out) > shown)
            watch.process.send_signal(signal.SIGINT)
            assert await watch.wait() == 0


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--watch"], ["--watch", "--json"]])
async def test_a_closed_pipe_ends_ps_with_exit_code_0(
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
        async with asyncio.timeout(60):
            out, err = await shell.communicate()
        assert len(out.splitlines()) == 1
        assert ((home / "code").read_text(), err) == ("0\n", b"")
