"""The command line as a user has it: real processes, their output, their exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bridge.box.journal_store import CUT_OFF, look
from bridge.bus.server import EmbeddedServer
from bridge.protocol import InstanceEvent, InstancesResponse, ScaleResponse, decode
from tests.boxes import boxed, gone, labelled
from tests.support import PORTS, TIMING, eventually, listening, service_table

VERBS = ["up", "box", "scale", "ps", "events", "routes", "timeline", "relay", "register", "logs"]
VERBS += ["config", "config check", "demo", "version"]
VERBS += ["hosts", "cordon", "drain", "uncordon", "rebalance", "history", "plan"]


class Finished:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Running:
    """A `box-bridge` that runs on, and what it has said so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.out: list[str] = []
        self.err: list[str] = []

    async def read(self, stream: asyncio.StreamReader, lines: list[str]) -> None:
        while line := await stream.readline():
            lines.append(line.decode().rstrip("\n"))

    async def said(self, pattern: str, *, within: float = 20) -> re.Match[str]:
        """The first line, of either stream, that matches."""
        return await eventually(
            lambda: next(filter(None, (re.search(pattern, x) for x in self.out + self.err)), None),
            within=within,
            what=f"{pattern!r} is said; so far: {self.err + self.out}",
        )

    async def ended(self, within: float = 20) -> int:
        async with asyncio.timeout(within):
            return await self.process.wait()


def environment(**more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**kept, "TERM": "dumb", "COLUMNS": "160", **more}


async def spawn(*arguments: object, cwd: Path, **env: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bridge.cli",
        *map(str, arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=cwd,
        env=environment(PYTHONPATH=str(Path(__file__).parents[2]), **env),
    )


async def run(*arguments: object, cwd: Path, **env: str) -> Finished:
    process = await spawn(*arguments, cwd=cwd, **env)
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode is not None
    assert b"Traceback" not in err, err.decode()
    return Finished(process.returncode, out.decode(), err.decode())


@asynccontextmanager
async def running(*arguments: object, cwd: Path, **env: str) -> AsyncIterator[Running]:
    process = await spawn(*arguments, cwd=cwd, **env)
    assert process.stdout is not None
    assert process.stderr is not None
    program = Running(process)
    async with asyncio.TaskGroup() as readers:
        readers.create_task(program.read(process.stdout, program.out))
        readers.create_task(program.read(process.stderr, program.err))
        try:
            yield program
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with a box.toml, as a user would have it."""
    box = f'[box]\nname = "box-a"\nmax_instances = 5\nports = "{PORTS}"\n'
    text = f"{box}{TIMING}\n{service_table('web')}"
    (tmp_path / "box.toml").write_text(text)
    return tmp_path


# ── without a server ─────────────────────────────────────────────────────────────────────


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


# ── everything on one machine ────────────────────────────────────────────────────────────


async def test_up_scale_ps_events_logs_and_ctrl_c(home: Path) -> None:
    async with running("up", "--port", "0", cwd=home) as up:
        url = (await up.said(r"NATS server: (nats://\S+)"))[1]
        await up.said("Box box-a is ready: web")
        async with (
            running("events", "--json", "-s", url, cwd=home) as all_events,
            running("events", "web", cwd=home, NATS_URL=url) as web_events,
        ):
            scaled = await scale_when_followed(home, url, all_events, web_events)
            assert "web scaled to 2 (request " in scaled.out
            assert "2 ready; 2 wanted" in scaled.err
            listed = await run("ps", cwd=home, NATS_URL=url)
            assert listed.out.count("ready") == 2
            assert listed.out.split()[:4] == ["ID", "SERVICE", "STATE", "HOST"]
            seen = decode(
                InstancesResponse,
                (await run("ps", "web", "--json", "-s", url, cwd=home)).out.encode(),
            )
            assert [info.service for info in seen.instances] == ["web", "web"]
            ids = [info.id for info in seen.instances]
            for instance_id in ids:
                await web_events.said(f"{instance_id} .*booting → ready")
            told = [decode(InstanceEvent, line.encode()) for line in all_events.out]
            assert {event.instance_id for event in told} >= set(ids)

            logs = await run("logs", ids[0], cwd=home)
            assert logs.out.startswith("serving on ")
            line = (await run("logs", ids[0], "--json", cwd=home)).json
            assert line["stream"] == "stdout"
            async with running("logs", ids[0], "-f", "-s", url, cwd=home) as follow:
                await follow.said("serving on")
                all_events.process.send_signal(signal.SIGINT)
                assert await all_events.ended() == 0
                up.process.send_signal(signal.SIGINT)
                await up.said("Draining; once more to end everything at once")
                assert await up.ended() == 0
                follow.process.send_signal(signal.SIGINT)
                assert await follow.ended() == 0
    for instance_id in ids:
        assert f"{instance_id} stopping → stopped" in "\n".join(up.err)
        assert not labelled(str(home / "data" / "instances" / instance_id))


async def scale_when_followed(home: Path, url: str, *followers: Running) -> Finished:
    """Scale web to 2 once the followers see events: an event is made until they do."""
    for number in range(50):
        await run("scale", "web", number % 2, "--wait", "-s", url, cwd=home)
        if all(follower.out for follower in followers):
            break
    return await run("scale", "web", 2, "--wait", "-s", url, cwd=home)


async def test_a_second_ctrl_c_ends_everything_at_once(home: Path) -> None:
    (home / "box.toml").write_text(
        f'[box]\nname = "box-a"\n{service_table("web", deregister_delay=60.0)}'
    )
    async with running("up", "--port", "0", cwd=home) as up:
        url = (await up.said(r"NATS server: (nats://\S+)"))[1]
        await up.said("is ready")
        assert (await run("scale", "web", 1, "--wait", "-s", url, cwd=home)).code == 0
        instances = list((home / "data" / "instances").iterdir())
        pids = [pid for instance in instances for pid in labelled(str(instance))]
        assert pids
        up.process.send_signal(signal.SIGINT)
        await up.said("ready → draining")
        up.process.send_signal(signal.SIGINT)
        assert await up.ended(within=10) == 130
    for pid in pids:
        await gone(pid)


async def test_up_ends_when_its_server_does_and_leaves_nothing_behind(home: Path) -> None:
    async with running("up", "--port", "0", cwd=home) as up:
        url = (await up.said(r"NATS server: (nats://\S+)"))[1]
        await up.said("is ready")
        assert (await run("scale", "web", 1, "--wait", "-s", url, cwd=home)).code == 0
        [instance] = (home / "data" / "instances").iterdir()
        assert labelled(str(instance))
        os.kill(server_of(up.process.pid), signal.SIGKILL)
        assert await up.ended() == 1
        await up.said("nats-server ended by itself, with -9: see .*nats-server.log")
    assert not labelled(str(instance))


def instance_dir(home: Path, instance_id: str, data_dir: str = "data") -> str:
    """The label of an instance's processes."""
    return str(home / data_dir / "instances" / instance_id)


def server_of(pid: int) -> int:
    """The nats-server that the process has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    [found] = [c for c in children if Path(f"/proc/{c}/comm").read_text() == "nats-server\n"]
    return int(found)


async def test_what_was_asked_is_made_so_again_by_the_next_up(home: Path) -> None:
    for number in range(2):
        # What the environment says of other servers means nothing to this one.
        elsewhere = {"NATS_NKEY": "/none", "NATS_JS_DOMAIN": "hub", "BOX_BRIDGE_REPLICAS": "3"}
        async with running("up", "--port", "0", cwd=home, **elsewhere) as up:
            url = (await up.said(r"NATS server: (nats://\S+)"))[1]
            await up.said("is ready")
            if number == 0:
                await run("scale", "web", 2, "--wait", "-s", url, cwd=home)
            else:
                await up.said("booting → ready")
            up.process.send_signal(signal.SIGTERM)
            assert await up.ended() == 0


async def test_a_port_that_is_taken_is_told(home: Path, server: EmbeddedServer) -> None:
    port = server.url.rpartition(":")[2]
    told = await run("up", "--port", port, cwd=home)
    assert told.code == 1
    assert "address already in use" in told.err


# ── a Box on an existing NATS ────────────────────────────────────────────────────────────


async def test_a_box_joins_a_nats_that_is_there_and_leaves_on_sigterm(
    home: Path, server: EmbeddedServer
) -> None:
    arguments = ["box", "--name", "box-z", "--data-dir", "elsewhere", "--on-exit", "drain"]
    arguments += ["--json", "--log", "debug"]
    async with running(*arguments, "-s", server.url, cwd=home) as box:
        await box.said("Box box-z is ready")
        records = [json.loads(line) for line in box.err]
        assert {"time", "level", "logger", "message"} <= records[0].keys()
        told = await run("scale", "web", 1, "--wait", "--json", "-s", server.url, cwd=home)
        answer = decode(ScaleResponse, told.out.encode())
        assert answer.accepted
        seen = (await run("ps", "--json", "-s", server.url, cwd=home)).json
        assert set(seen["hosts"].values()) == {"box-z"}
        assert (home / "elsewhere" / "instances").is_dir()
        missing = await run("logs", seen["instances"][0]["id"], "-s", server.url, cwd=home)
        assert missing.code == 1
        assert "it runs on host box-z" in missing.err
        box.process.send_signal(signal.SIGTERM)
        await box.said("Draining; once more to end everything at once")
        assert await box.ended() == 0
    assert not [
        pid
        for info in seen["instances"]
        for pid in labelled(instance_dir(home, info["id"], "elsewhere"))
    ]


async def test_instances_outlive_a_box_that_is_stopped_and_its_next_life_takes_them_back(
    home: Path, server: EmbeddedServer
) -> None:
    link = ("-s", server.url)
    async with running("box", *link, cwd=home) as box:
        await box.said("Box box-a is ready")
        assert (await run("scale", "web", 1, "--wait", *link, cwd=home)).code == 0
        [before] = (await run("ps", "--json", *link, cwd=home)).json["instances"]
        pids = labelled(instance_dir(home, before["id"]))
        assert pids
        box.process.send_signal(signal.SIGTERM)
        await box.said("the instances keep running; once more to end at once")
        assert await box.ended() == 0
    assert labelled(instance_dir(home, before["id"])) == pids
    async with running("box", "--on-exit", "drain", *link, cwd=home) as box:
        await box.said("Box box-a is ready")
        [after] = (await run("ps", "--json", *link, cwd=home)).json["instances"]
        for key in ("id", "endpoint", "ready_at", "state"):
            assert after[key] == before[key]
        box.process.send_signal(signal.SIGINT)
        await box.said("ready → draining")
        assert await box.ended() == 0
    for pid in pids:
        await gone(pid)


async def test_when_nobody_answers_ps_shows_what_the_journal_of_this_host_says(
    home: Path, server: EmbeddedServer
) -> None:
    link = ("-s", server.url)
    nobody = "nobody answers on NATS; this is what the journal of this host says"
    (home / "data").mkdir()
    (home / "data" / "journal.db").write_bytes(b"not SQLite" * 999)
    async with running("box", *link, cwd=home) as box:
        await box.said("Box box-a is ready")
        assert (await run("scale", "web", 2, "--wait", *link, cwd=home)).code == 0
        first, second = (await run("ps", "--json", *link, cwd=home)).json["instances"]
        calm = (await run("ps", "--json", "--local", cwd=home)).json
        assert {info["id"] for info in calm["instances"]} == {first["id"], second["id"]}
        assert (calm["cut_off_since"], calm["events_waiting"], calm["ended"]) == ("", 0, [])
        await server.kill()
        for pid in labelled(instance_dir(home, first["id"])):
            os.kill(pid, signal.SIGKILL)
        await box.said(f"{first['id']} ready → failed")

        def written() -> bool:
            seen = look(home / "data" / "journal.db")
            return CUT_OFF in seen.facts and seen.backlog > 0

        await eventually(written)
        told = await run("ps", *link, cwd=home)
        assert told.code == 3
        assert told.out.startswith(f"{nobody} ({home / 'data' / 'journal.db'}):\n")
        assert re.search(rf"{second['id']} .* ready .* {second['endpoint']}", told.out)
        assert first["id"] not in told.out
        assert re.search(r"^cut off from NATS since 20\S+Z$", told.out, re.MULTILINE)
        waits = r"^\d+ events? waits? to be told, the oldest since 20\S+Z$"
        assert re.search(waits, told.out, re.MULTILINE)
        assert "a damaged journal was set aside as" in told.out
        assert "cannot connect to NATS" in told.err

        found = await run("ps", "--json", *link, cwd=home)
        assert (found.code, len(found.out.splitlines())) == (3, 1)
        assert second["id"] in [info["id"] for info in found.json["instances"]]
        assert found.json["cut_off_since"].startswith("20")
        assert found.json["events_waiting"] >= 1
        assert found.json["waiting_since"].startswith("20")
        assert Path(found.json["set_aside"]).exists()
        assert (await run("ps", "nope", "--json", *link, cwd=home)).json["instances"] == []

        box.process.kill()
        await box.process.wait()
    await server.start()
    for pid in labelled(instance_dir(home, second["id"])):
        os.kill(pid, signal.SIGKILL)
    await eventually(lambda: not labelled(instance_dir(home, second["id"])))
    nobody_there = await run("ps", *link, cwd=home)
    assert (nobody_there.code, nobody_there.out.startswith(nobody)) == (3, True)
    assert "no Box answers on box.instances" in nobody_there.err
    alone = await run("ps", "--local", "--data-dir", home / "data", cwd=home / "data")
    assert (alone.code, alone.err) == (0, "")
    assert alone.out.startswith("This is what the journal of this host says")
    assert f"ended since, as no Box has noted yet: {second['id']}" in alone.out
    for instance in (home / "data" / "instances").iterdir():  # one was made for the one that failed
        for pid in labelled(str(instance)):
            os.kill(pid, signal.SIGKILL)


async def test_a_second_sigterm_ends_a_box_that_waits_for_the_bus_and_no_instance(
    home: Path, server: EmbeddedServer
) -> None:
    link = ("-s", server.url)
    async with running("box", *link, cwd=home) as box:
        await box.said("Box box-a is ready")
        assert (await run("scale", "web", 2, "--wait", *link, cwd=home)).code == 0
        first, second = (await run("ps", "--json", *link, cwd=home)).json["instances"]
        await server.kill()
        for pid in labelled(instance_dir(home, first["id"])):
            os.kill(pid, signal.SIGKILL)
        await box.said(f"{first['id']} ready → failed")  # that waits to be told
        pids = labelled(instance_dir(home, second["id"]))
        box.process.send_signal(signal.SIGTERM)
        await box.said("the instances keep running; once more to end at once")
        box.process.send_signal(signal.SIGTERM)
        assert await box.ended() == 130
    assert pids
    assert labelled(instance_dir(home, second["id"])) == pids
    await server.start()
    async with running("box", "--on-exit", "drain", *link, cwd=home) as box:
        await box.said("Box box-a is ready")
        box.process.send_signal(signal.SIGTERM)
        assert await box.ended() == 0
    for pid in pids:
        await gone(pid)


async def test_a_box_that_waits_for_nats_to_be_there_is_stopped_at_once(home: Path) -> None:
    address = str(home / "notify")
    link = ("-s", "nats://127.0.0.1:1")
    async with (
        listening(address) as manager,
        running("box", *link, cwd=home, NOTIFY_SOCKET=address) as box,
    ):
        await manager.told("STATUS=this Box is starting")
        await eventually((home / "data" / "journal.db").exists)
        box.process.send_signal(signal.SIGTERM)
        assert await box.ended() == 0  # it would have waited longer than this does
        await manager.told("STOPPING=1")


async def test_up_leaves_its_instances_running_if_it_is_told_to(home: Path) -> None:
    async with running("up", "--port", "0", cwd=home, BOX_BRIDGE_ON_EXIT="leave") as up:
        url = (await up.said(r"NATS server: (nats://\S+)"))[1]
        await up.said("is ready")
        assert (await run("scale", "web", 1, "--wait", "-s", url, cwd=home)).code == 0
        up.process.send_signal(signal.SIGTERM)
        await up.said("the instances keep running")
        assert await up.ended() == 0
    [instance] = (home / "data" / "instances").iterdir()
    pids = labelled(str(instance))
    assert pids
    async with running("up", "--port", "0", cwd=home) as up:
        await up.said("is ready")
        up.process.send_signal(signal.SIGTERM)
        await up.said(f"{instance.name} ready → draining")
        assert await up.ended() == 0
    for pid in pids:
        await gone(pid)


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
            env=environment(PYTHONPATH=str(Path(__file__).parents[2])),
        )
        async with asyncio.timeout(20):
            out, err = await shell.communicate()
        assert len(out.splitlines()) == 1
        assert ((home / "code").read_text(), err) == ("0\n", b"")
