"""What a verb prints where something is missing, wrong, or granted in part, and its exit code."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.server_binary import find_binary
from tests.boxes import boxed
from tests.e2e.program import environment, run, running
from tests.paths import REPOSITORY
from tests.support import eventually, service_table

ONCE = (
    *(["scale", "web", "1"], ["ps"], ["hosts"], ["services"], ["events", "--no-follow"]),
    *(["routes"], ["timeline", "web"], ["history", "web"], ["plan", "web", "1"], ["cordon", "a"]),
    *(["drain", "a"], ["uncordon", "a"], ["rebalance"]),
)
FOLLOWING = (
    ["events", "--since", "all"],
    ["routes", "--watch"],
    ["ps", "--watch"],
    ["hosts", "--watch"],
)


@contextlib.asynccontextmanager
async def without_jetstream(directory: Path) -> AsyncIterator[str]:
    """The URL of a nats-server that has no JetStream."""
    command = [str(find_binary()), "-a", "127.0.0.1", "-p", "-1", "-l", str(directory / "log")]
    process = subprocess.Popen([*command, "--ports_file_dir", str(directory)])
    try:
        ports = await eventually(lambda: next(iter(directory.glob("*.ports")), None))
        found = await eventually(lambda: json.loads(ports.read_text() or "null"))
        yield found["nats"][0]
    finally:
        process.terminate()
        process.wait()


# ── what is missing ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("verb", ONCE, ids=" ".join)
async def test_a_verb_names_the_missing_server(verb: list[str], tmp_path: Path) -> None:
    result = await run(*verb, "-s", "nats://127.0.0.1:1", cwd=tmp_path)
    assert result.code == 3
    assert result.err == (
        "box-bridge: cannot connect to NATS at nats://127.0.0.1:1: connection refused. Start it "
        "(`box-bridge up` runs one), or correct [nats] url, NATS_URL or --server\n"
    )


async def test_a_verb_names_a_host_that_does_not_exist(tmp_path: Path) -> None:
    result = await run("ps", "-s", "nats://nats.exmaple.invalid", cwd=tmp_path)
    assert result.code == 3
    host = "nats.exmaple.invalid"
    assert f"unknown host {host}" in result.err or f"the name {host} cannot" in result.err


@pytest.mark.slow
async def test_every_verb_names_the_missing_jetstream_and_the_missing_box(
    tmp_path: Path, server: EmbeddedServer
) -> None:
    async with without_jetstream(tmp_path) as url:
        for verb in ONCE:
            result = await run(*verb, "-s", url, cwd=tmp_path)
            assert (result.code, "has no JetStream: start it with `-js`" in result.err) == (3, True)
    for verb in ONCE:
        result = await run(*verb, "-s", server.url, cwd=tmp_path)
        assert (result.code, f"no Box has run on NATS at {server.url}" in result.err) == (3, True)


@pytest.mark.parametrize(
    "verb",
    [FOLLOWING[0], *(pytest.param(verb, marks=pytest.mark.slow) for verb in FOLLOWING[1:])],
    ids=" ".join,
)
async def test_a_verb_that_follows_waits_for_the_server_and_then_for_a_box(
    verb: list[str], home: Path, server: EmbeddedServer
) -> None:
    await server.kill()
    async with running(*verb, "-s", server.url, cwd=home) as program:
        await program.wait_for(f"Waiting for NATS at {server.url}: connection refused")
        await server.start()
        await program.wait_for(f"no Box has run on NATS at {server.url} with prefix box")
        async with boxed(server, home):
            await run("scale", "web", 1, "--wait", "-s", server.url, cwd=home)
            await program.wait_for("web|box-a")
            program.process.send_signal(signal.SIGINT)
            assert await program.wait() == 0
    assert sum("Waiting for NATS" in line for line in program.err) == 1


@pytest.mark.slow
async def test_a_box_waits_for_its_server(home: Path, server: EmbeddedServer) -> None:
    await server.kill()
    async with running("box", "-s", server.url, cwd=home) as box:
        await box.wait_for(f"Waiting for NATS at {server.url}: connection refused")
        await server.start()
        await box.wait_for("Box box-a is ready")
        box.process.send_signal(signal.SIGTERM)
        assert await box.wait() == 0


@pytest.mark.slow
async def test_a_box_that_waits_for_its_server_can_be_stopped(home: Path) -> None:
    drain = ("--on-exit", "drain")
    async with running("box", *drain, "-s", "nats://127.0.0.1:1", cwd=home) as box:
        await box.wait_for("Waiting for NATS")
        box.process.send_signal(signal.SIGTERM)
        assert await box.wait() == 0


@pytest.mark.slow
async def test_register_waits_until_its_registration_is_stored(
    tmp_path: Path, server: EmbeddedServer
) -> None:
    port, program = "39217", [sys.executable, "-m", "http.server", "--bind", "127.0.0.1"]
    verb = ["register", "--service", "web", "--endpoint", f"127.0.0.1:{port}", "-s", server.url]
    async with running(*verb, "--", *program, port, cwd=tmp_path) as register:
        await register.wait_for("Waiting: no Box has run on NATS")
        assert not any("is registered" in line for line in register.err)
        async with boxed(server, tmp_path):
            await register.wait_for("web-.* is registered at")
            register.process.send_signal(signal.SIGTERM)
            await register.wait_for("is withdrawn")
            await register.wait()


@pytest.mark.parametrize(
    ("verb", "package", "extra"),
    [("up", "psutil", "box,server"), ("demo", "aiohttp", "box,server")],
)
def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    verb: str, package: str, extra: str, home: Path
) -> None:
    code = f"import sys;sys.modules[{package!r}]=None;from bridge.cli import main;sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, verb],
        cwd=home,
        env=environment(PYTHONPATH=str(REPOSITORY)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert (
        done.stderr == f"box-bridge: `{verb}` needs {package}: pip install 'box-bridge[{extra}]'\n"
    )


# ── names that do not exist ──────────────────────────────────────────────────────────────


async def test_every_verb_names_the_services_that_exist(home: Path, server: EmbeddedServer) -> None:
    async with boxed(server, home, service_table("web"), service_table("api")):
        for verb in (
            *(["ps", "webb"], ["scale", "webb", "1"], ["routes", "webb"], ["timeline", "webb"]),
            *(["events", "webb"], ["events", "webb", "--no-follow"], ["history", "webb"]),
            *(["plan", "webb", "2"], ["rebalance", "webb"], ["logs", "webb"]),
            ["relay", "webb", "--to", "http://127.0.0.1:9/"],
        ):
            result = await run(*verb, "-s", server.url, cwd=home)
            assert (result.code, result.err) == (
                1,
                "box-bridge: no service webb; known: api, web\n",
            )


async def test_logs_of_a_service_are_those_of_its_instances_here(
    home: Path, server: EmbeddedServer
) -> None:
    async with boxed(server, home):
        await run("scale", "web", 2, "--wait", "-s", server.url, cwd=home)
        listed = (await run("ps", "--json", "-s", server.url, cwd=home)).json
        ids = [info["id"] for info in listed["instances"]]
        logs = await run("logs", "web", "-s", server.url, "--data-dir", _data(home), cwd=home)
        assert {line.split()[0] for line in logs.out.splitlines()} == set(ids)
        wrong = await run("logs", "web-zzz", "-s", server.url, cwd=home)
        assert wrong.code == 1
        assert wrong.err.startswith("box-bridge: no instance web-zzz; known: web-")


def _data(home: Path) -> Path:
    """The data directory of the Box that runs in this process."""
    return next(path.parent for path in home.rglob("journal.db"))


# ── a scale request ──────────────────────────────────────────────────────────────────────


async def test_a_capped_request_is_done_in_part_and_waited_for(
    home: Path, server: EmbeddedServer
) -> None:
    async with boxed(server, home, service_table("web"), max_instances=2):
        capped = await run("scale", "web", 9, "--wait", "-s", server.url, cwd=home)
        assert capped.code == 4
        assert capped.out.startswith("web scaled to 2 of 9 (request ")
        assert capped.out.count(" ready ") == 2
        assert "Capped to 2 instances" in capped.err


async def test_ctrl_c_reports_that_the_request_stands(home: Path, server: EmbeddedServer) -> None:
    never = service_table("web", command=["sleep", "1000"])
    verb = ("scale", "web", 1, "--wait", "-s", server.url)
    async with boxed(server, home, never), running(*verb, cwd=home) as scale:
        await scale.wait_for("booting")
        scale.process.send_signal(signal.SIGINT)
        await scale.wait_for("The request [0-9a-f]+ stands if a Box has accepted it")
        assert await scale.wait() == 130


async def test_a_port_without_its_guest_is_wrong_usage(tmp_path: Path) -> None:
    result = await run("scale", "web", 1, "--port", "80", cwd=tmp_path)
    assert result.code == 2
    assert result.err == "box-bridge: --port: takes HOST:GUEST, e.g. `0:80`, not '80'\n"


async def test_a_missing_argument_is_named_with_the_usage(tmp_path: Path) -> None:
    result = await run("scale", "web", cwd=tmp_path)
    usage = "`box-bridge scale SERVICE REPLICAS`"
    assert (result.code, result.err) == (2, f"box-bridge: REPLICAS is missing: {usage}\n")


# ── this host ────────────────────────────────────────────────────────────────────────────


async def test_ps_shows_the_journal_of_the_box_on_that_nats_alone(
    home: Path, server: EmbeddedServer
) -> None:
    async with running("box", "-s", server.url, cwd=home) as box:
        await box.wait_for("Box box-a is ready")
        box.process.send_signal(signal.SIGTERM)
        assert await box.wait() == 0
    own = await run("ps", "-s", server.url, cwd=home)
    assert (own.code, "journal of this host" in own.out) == (3, True)
    for other in (["-s", "nats://127.0.0.1:1"], ["-s", server.url, "--prefix", "other"]):
        result = await run("ps", *other, cwd=home)
        assert (result.code, result.out) == (3, "")


@pytest.mark.slow
async def test_a_second_up_and_a_taken_port_are_reported(home: Path, tmp_path: Path) -> None:
    async with running("up", "--port", "0", cwd=home) as up:
        url = (await up.wait_for(r"NATS server: (nats://\S+)"))[1]
        port = url.rpartition(":")[2]
        second = await run("up", "--port", 0, cwd=home)
        message = f"box-bridge: `up` already runs here (pid {up.process.pid}, {url})\n"
        assert (second.code, second.err) == (1, message)
        taken = await run("up", "--port", port, "--data-dir", tmp_path / "other", cwd=home)
        assert taken.code == 1
        assert f"Port {port} is taken. Use `--port 0`, or run a Box on that NATS" in taken.err
        up.process.send_signal(signal.SIGTERM)
        assert await up.wait() == 0


async def test_up_without_a_file_names_init_which_writes_one(tmp_path: Path) -> None:
    without = await run("up", cwd=tmp_path)
    assert (without.code, "`box-bridge init` writes a box.toml" in without.err) == (2, True)
    assert (await run("init", cwd=tmp_path)).code == 0
    assert (await run("config", "check", cwd=tmp_path)).code == 0
    text = (tmp_path / "box.toml").read_text()
    again = await run("init", cwd=tmp_path)
    assert (again.code, (tmp_path / "box.toml").read_text()) == (2, text)


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ('command = ["python3", "{prot}"]', "unknown placeholder `{prot}` in '{prot}'"),
        ('command = ["no-such-program"]', "no-such-program of service web"),
        ('command = ["python3"]\ncwd = "nowhere"', "nowhere is not a directory"),
        ('command = ["a"]\nimage = "nginx"', '`image` needs `[box] runtime = "oci"`'),
        ('command = "python3 -m"', '`command` is a list: `command = ["python3", "-m"]`'),
        ('command = ["a"]\nenv = { LEVEL = 3 }', '`env.LEVEL` must be text: `LEVEL = "3"`'),
        ('command = ["a", 80]', 'each item of `command` must be text: `"80"`'),
        ('command = ["a"]\nvcpus = "2"', "`vcpus` must be a whole number: `vcpus = 2`"),
    ],
)
async def test_config_check_finds_what_would_fail_at_the_first_start(
    table: str, problem: str, tmp_path: Path
) -> None:
    (tmp_path / "box.toml").write_text(f"[services.web]\n{table}\n")
    result = await run("config", "check", cwd=tmp_path)
    assert result.code == 2
    assert problem in result.err


async def test_config_check_accepts_what_shells_and_awk_put_into_braces(tmp_path: Path) -> None:
    words = ["sh", "-c", "exec serve ${HOME} {port} | awk {print}"]
    (tmp_path / "box.toml").write_text(f"[services.web]\ncommand = {json.dumps(words)}\n")
    result = await run("config", "check", cwd=tmp_path)
    assert (result.code, result.err) == (0, "")
