"""`up` and `box`: what they leave running, and what they end."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from bridge.box.journal.store import CUT_OFF, read_snapshot
from bridge.bus.embedded_server import EmbeddedServer
from bridge.protocol import InstanceEvent, InstancesResponse, ScaleResponse, decode
from tests.boxes import gone, labelled
from tests.e2e.program import Program, Result, run, running
from tests.support import PORTS, eventually, listening, service_table

# ── everything on one machine ────────────────────────────────────────────────────────────


async def test_up_scale_ps_events_and_logs_work_together_until_ctrl_c(home: Path) -> None:
    async with running("up", "--port", "0", cwd=home) as up:
        url = (await up.wait_for(r"NATS server: (nats://\S+)"))[1]
        await up.wait_for("Box box-a is ready: web")
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
                await web_events.wait_for(f"{instance_id} .*booting → ready")
            seen_events = [decode(InstanceEvent, line.encode()) for line in all_events.out]
            assert {event.instance_id for event in seen_events} >= set(ids)

            logs = await run("logs", ids[0], cwd=home)
            assert logs.out.startswith("serving on ")
            line = (await run("logs", ids[0], "--json", cwd=home)).json
            assert line["stream"] == "stdout"
            async with running("logs", ids[0], "-f", "-s", url, cwd=home) as follow:
                await follow.wait_for("serving on")
                all_events.process.send_signal(signal.SIGINT)
                assert await all_events.wait() == 0
                up.process.send_signal(signal.SIGINT)
                await up.wait_for("Draining; once more to end everything at once")
                assert await up.wait() == 0
                follow.process.send_signal(signal.SIGINT)
                assert await follow.wait() == 0
    for instance_id in ids:
        assert f"{instance_id} stopping → stopped" in "\n".join(up.err)
        assert not labelled(str(home / "data" / "instances" / instance_id))


async def scale_when_followed(home: Path, url: str, *followers: Program) -> Result:
    """Scale web to 2 once the followers see events: an event is made until they do."""
    for number in range(50):
        await run("scale", "web", number % 2, "--wait", "-s", url, cwd=home)
        if all(follower.out for follower in followers):
            break
    return await run("scale", "web", 2, "--wait", "-s", url, cwd=home)


@pytest.mark.slow
async def test_a_second_ctrl_c_ends_up_and_its_instances_at_once(home: Path) -> None:
    (home / "box.toml").write_text(
        f'[box]\nname = "box-a"\nports = "{PORTS}"\n{service_table("web", deregister_delay=60.0)}'
    )
    async with running("up", "--port", "0", cwd=home) as up:
        url = (await up.wait_for(r"NATS server: (nats://\S+)"))[1]
        await up.wait_for("is ready")
        assert (await run("scale", "web", 1, "--wait", "-s", url, cwd=home)).code == 0
        instances = list((home / "data" / "instances").iterdir())
        pids = [pid for instance in instances for pid in labelled(str(instance))]
        assert pids
        up.process.send_signal(signal.SIGINT)
        await up.wait_for("ready → draining")
        up.process.send_signal(signal.SIGINT)
        assert await up.wait(within=40) == 130
    for pid in pids:
        await gone(pid)


@pytest.mark.slow
async def test_up_ends_when_its_server_does_and_leaves_nothing_behind(home: Path) -> None:
    async with running("up", "--port", "0", cwd=home) as up:
        url = (await up.wait_for(r"NATS server: (nats://\S+)"))[1]
        await up.wait_for("is ready")
        assert (await run("scale", "web", 1, "--wait", "-s", url, cwd=home)).code == 0
        [instance] = (home / "data" / "instances").iterdir()
        assert labelled(str(instance))
        os.kill(server_of(up.process.pid), signal.SIGKILL)
        assert await up.wait() == 1
        await up.wait_for("nats-server ended with code -9: see .*nats-server.log")
    assert not labelled(str(instance))


def instance_dir(home: Path, instance_id: str, data_dir: str = "data") -> str:
    """The label of an instance's processes."""
    return str(home / data_dir / "instances" / instance_id)


def server_of(pid: int) -> int:
    """The nats-server that the process has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    [found] = [c for c in children if Path(f"/proc/{c}/comm").read_text() == "nats-server\n"]
    return int(found)


async def test_the_next_up_restores_the_services(home: Path) -> None:
    for number in range(2):
        # What the environment says of other servers means nothing to this one.
        elsewhere = {"NATS_NKEY": "/none", "NATS_JS_DOMAIN": "hub", "BOX_BRIDGE_REPLICAS": "3"}
        async with running("up", "--port", "0", cwd=home, **elsewhere) as up:
            url = (await up.wait_for(r"NATS server: (nats://\S+)"))[1]
            await up.wait_for("is ready")
            if number == 0:
                await run("scale", "web", 2, "--wait", "-s", url, cwd=home)
            else:
                await up.wait_for("booting → ready")
            up.process.send_signal(signal.SIGTERM)
            assert await up.wait() == 0


async def test_up_reports_a_taken_port(home: Path, server: EmbeddedServer) -> None:
    port = server.url.rpartition(":")[2]
    result = await run("up", "--port", port, cwd=home)
    assert result.code == 1
    assert f"Port {port} is taken. Use `--port 0`" in result.err


# ── a Box on an existing NATS ────────────────────────────────────────────────────────────


async def test_box_joins_an_existing_nats_and_drains_on_sigterm(
    home: Path, server: EmbeddedServer
) -> None:
    arguments = ["box", "--name", "box-z", "--data-dir", "elsewhere", "--on-exit", "drain"]
    arguments += ["--json", "--log", "debug"]
    async with running(*arguments, "-s", server.url, cwd=home) as box:
        await box.wait_for("Box box-z is ready")
        records = [json.loads(line) for line in box.err]
        assert {"time", "level", "logger", "message"} <= records[0].keys()
        result = await run("scale", "web", 1, "--wait", "--json", "-s", server.url, cwd=home)
        answer = decode(ScaleResponse, result.out.encode())
        assert answer.accepted
        seen = (await run("ps", "--json", "-s", server.url, cwd=home)).json
        assert set(seen["hosts"].values()) == {"box-z"}
        assert (home / "elsewhere" / "instances").is_dir()
        logs = await run("logs", seen["instances"][0]["id"], "-s", server.url, cwd=home)
        assert logs.out.startswith("serving on ")  # over the bus: its files are elsewhere
        box.process.send_signal(signal.SIGTERM)
        await box.wait_for("Draining; once more to end everything at once")
        assert await box.wait() == 0
    assert not [
        pid
        for info in seen["instances"]
        for pid in labelled(instance_dir(home, info["id"], "elsewhere"))
    ]


async def test_instances_outlive_a_stopped_box_and_its_restart_takes_them_back(
    home: Path, server: EmbeddedServer
) -> None:
    link = ("-s", server.url)
    async with running("box", *link, cwd=home) as box:
        await box.wait_for("Box box-a is ready")
        assert (await run("scale", "web", 1, "--wait", *link, cwd=home)).code == 0
        [before] = (await run("ps", "--json", *link, cwd=home)).json["instances"]
        pids = labelled(instance_dir(home, before["id"]))
        assert pids
        box.process.send_signal(signal.SIGTERM)
        await box.wait_for("the instances keep running; once more to end at once")
        assert await box.wait() == 0
    assert labelled(instance_dir(home, before["id"])) == pids
    async with running("box", "--on-exit", "drain", *link, cwd=home) as box:
        await box.wait_for("Box box-a is ready")
        [after] = (await run("ps", "--json", *link, cwd=home)).json["instances"]
        for key in ("id", "endpoint", "ready_at", "state"):
            assert after[key] == before[key]
        box.process.send_signal(signal.SIGINT)
        await box.wait_for("ready → draining")
        assert await box.wait() == 0
    for pid in pids:
        await gone(pid)


@pytest.mark.slow
async def test_ps_shows_the_journal_of_this_host_when_no_box_answers(
    home: Path, server: EmbeddedServer
) -> None:
    link = ("-s", server.url)
    nobody = "nobody answers on NATS; this is what the journal of this host says"
    (home / "data").mkdir()
    (home / "data" / "journal.db").write_bytes(b"not SQLite" * 999)
    async with running("box", *link, cwd=home) as box:
        await box.wait_for("Box box-a is ready")
        assert (await run("scale", "web", 2, "--wait", *link, cwd=home)).code == 0
        first, second = (await run("ps", "--json", *link, cwd=home)).json["instances"]

        async def calm() -> Any:
            seen = (await run("ps", "--json", "--local", cwd=home)).json
            return seen if seen["events_waiting"] == 0 else None

        journal = await eventually(calm)
        assert {info["id"] for info in journal["instances"]} == {first["id"], second["id"]}
        assert (journal["cut_off_since"], journal["ended"]) == ("", [])
        await server.kill()
        for pid in labelled(instance_dir(home, first["id"])):
            os.kill(pid, signal.SIGKILL)
        await box.wait_for(f"{first['id']} ready → failed")

        def written() -> bool:
            seen = read_snapshot(home / "data" / "journal.db")
            return CUT_OFF in seen.facts and seen.backlog > 0

        await eventually(written)
        result = await run("ps", *link, cwd=home)
        assert result.code == 3
        assert result.out.startswith(f"{nobody} ({home / 'data' / 'journal.db'}):\n")
        assert re.search(rf"{second['id']} .* ready .* {second['endpoint']}", result.out)
        assert first["id"] not in result.out
        assert re.search(r"^cut off from NATS since 20\S+Z$", result.out, re.MULTILINE)
        waits = r"^\d+ events? waits? to be published, the oldest since 20\S+Z$"
        assert re.search(waits, result.out, re.MULTILINE)
        assert "a damaged journal was set aside as" in result.out
        assert "cannot connect to NATS" in result.err

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


@pytest.mark.slow
async def test_a_second_sigterm_ends_a_box_that_is_cut_off_and_no_instance(
    home: Path, server: EmbeddedServer
) -> None:
    link = ("-s", server.url)
    async with running("box", *link, cwd=home) as box:
        await box.wait_for("Box box-a is ready")
        assert (await run("scale", "web", 2, "--wait", *link, cwd=home)).code == 0
        first, second = (await run("ps", "--json", *link, cwd=home)).json["instances"]
        await server.kill()
        for pid in labelled(instance_dir(home, first["id"])):
            os.kill(pid, signal.SIGKILL)
        await box.wait_for(f"{first['id']} ready → failed")  # this event waits for NATS
        pids = labelled(instance_dir(home, second["id"]))
        box.process.send_signal(signal.SIGTERM)
        await box.wait_for("the instances keep running; once more to end at once")
        box.process.send_signal(signal.SIGTERM)
        assert await box.wait() == 130
    assert pids
    assert labelled(instance_dir(home, second["id"])) == pids
    await server.start()
    async with running("box", "--on-exit", "drain", *link, cwd=home) as box:
        await box.wait_for("Box box-a is ready")
        box.process.send_signal(signal.SIGTERM)
        assert await box.wait() == 0
    for pid in pids:
        await gone(pid)


async def test_a_box_that_waits_for_its_first_connection_stops_at_once(home: Path) -> None:
    address = str(home / "notify")
    link = ("-s", "nats://127.0.0.1:1")
    async with (
        listening(address) as manager,
        running("box", *link, cwd=home, NOTIFY_SOCKET=address) as box,
    ):
        await manager.notified("STATUS=this Box is starting")
        await eventually((home / "data" / "journal.db").exists)
        box.process.send_signal(signal.SIGTERM)
        assert await box.wait() == 0  # it would have waited longer than this does
        await manager.notified("STOPPING=1")


@pytest.mark.slow
async def test_up_with_on_exit_leave_leaves_its_instances_running(home: Path) -> None:
    async with running("up", "--port", "0", cwd=home, BOX_BRIDGE_ON_EXIT="leave") as up:
        url = (await up.wait_for(r"NATS server: (nats://\S+)"))[1]
        await up.wait_for("is ready")
        assert (await run("scale", "web", 1, "--wait", "-s", url, cwd=home)).code == 0
        up.process.send_signal(signal.SIGTERM)
        await up.wait_for("the instances keep running")
        assert await up.wait() == 0
    [instance] = (home / "data" / "instances").iterdir()
    pids = labelled(str(instance))
    assert pids
    async with running("up", "--port", "0", cwd=home) as up:
        await up.wait_for("is ready")
        up.process.send_signal(signal.SIGTERM)
        await up.wait_for(f"{instance.name} ready → draining")
        assert await up.wait() == 0
    for pid in pids:
        await gone(pid)
