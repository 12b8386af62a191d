"""`timeline` and `relay` as a user has them: real processes, their output, their exit codes."""

from __future__ import annotations

import asyncio
import json
import shlex
import signal
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.api import jetstream
from bridge.bus.jetstream.publish import store
from bridge.protocol import InstanceEvent, InstanceState, encode
from tests.e2e.program import run, run_process, running, spawn
from tests.paths import REPOSITORY
from tests.receiver import receiving, tell
from tests.support import connect, eventually

S = InstanceState
EVIL = "</text><script>\x1b[31m&"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["timeline"], "SERVICE"),
        (["timeline", "a.b"], "is not a name"),
        (["timeline", "web", "--since", "soon"], "is none of: all, a stream sequence"),
        (["timeline", "web", "--since", "²m"], "is none of: all, a stream sequence"),
        (["timeline", "web", "--since", "17"], "is a sequence; say how long ago"),
        (["timeline", "web", "--width", "3"], "Must be >= 20"),
        (["timeline", "web", "--rows", "0"], "Must be >= 1"),
        (["timeline", "web", "--svg", "/none/x.svg"], "/none/x.svg cannot be written"),
        (["relay"], "--to"),
        (["relay", "--to", "http://x/", "--durable", "a.b"], "is not a name"),
        (["relay", "--to", "http://x/", "--state", "Nope"], "Invalid value"),
        (["relay", "--to", "http://x/", "--since", "1y"], "is none of: all, a stream sequence"),
        (["relay", "--to", "http://x/", "--header", "x"], "must be NAME=VALUE"),
        (["relay", "--to", "http://x/", "--header", "A=@/none"], "/none cannot be read"),
        (["relay", "--to", "http://x/", "--timeout", "0"], "Must be > 0"),
        (["relay", "--to", "http://x/", "--max-attempts", "0"], "Must be >= 1"),
    ],
)
async def test_wrong_usage_is_reported_with_exit_code_2(
    server: EmbeddedServer, arguments: list[str], message: str, tmp_path: Path
) -> None:
    async with connect(server.url) as connection:
        await topology.ensure(connection)
    result = await run(*arguments, cwd=tmp_path, NATS_URL=server.url)
    assert (result.code, result.out) == (2, "")
    assert message in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["relay", "--to", "ftp://x/"], "not a URL"),
        (["relay", "a.b", "--to", "http://x/"], "is not a name"),
        (["relay", "--to", "http://x/", "--header", "Ce-Id=x"], "the relay sets Ce-Id itself"),
    ],
)
async def test_the_relay_reports_a_wrong_configuration_with_exit_code_2(
    server: EmbeddedServer, arguments: list[str], message: str, tmp_path: Path
) -> None:
    result = await run_process(*arguments, cwd=tmp_path, NATS_URL=server.url)
    assert (result.code, result.out) == (2, "")
    assert message in result.err


@pytest.mark.usefixtures("impatient")
async def test_an_unreachable_server_is_reported_with_exit_code_3(tmp_path: Path) -> None:
    result = await run("timeline", "web", "-s", "nats://127.0.0.1:1", cwd=tmp_path)
    assert (result.code, result.out) == (3, "")
    assert "cannot connect to NATS" in result.err


# ── timeline ─────────────────────────────────────────────────────────────────────────────


async def store_events(connection: Connection) -> None:
    """One instance that lives, one that has failed, and things that are no events."""
    await topology.ensure(connection)
    steps = [
        ("web-1", S.CREATING, S.BOOTING, ""),
        ("web-2", S.CREATING, S.BOOTING, ""),
        ("web-1", S.BOOTING, S.READY, ""),
        ("web-2", S.BOOTING, S.FAILED, f"exit code 3: {EVIL}"),
        ("<b>\x1b[2J", S.CREATING, S.BOOTING, ""),
    ]
    for name, before, after, message in steps:
        event = InstanceEvent.transition(name, "web", before, after).with_message(message)
        await store(connection, "box.events.web", encode(event))
    await store(connection, "box.events.web", b"nonsense")
    other = InstanceEvent.transition("api-1", "api", S.CREATING, S.BOOTING)
    await store(connection, "box.events.api", encode(other))


async def test_timeline_draws_the_stored_events(server: EmbeddedServer, tmp_path: Path) -> None:
    async with connect(server.url) as connection:
        await store_events(connection)
    shown = await run("timeline", "web", "--width", "40", cwd=tmp_path, NATS_URL=server.url)
    assert shown.code == 0
    lines = shown.out.splitlines()
    assert lines[0].startswith("web-1 ")
    assert lines[0].endswith("█")  # it lives
    assert lines[1].rstrip().endswith("✗")
    assert "web-2  exit code 3: </text><script>�[31m&" in shown.out
    assert "\x1b" not in shown.out + shown.err
    assert "api-1" not in shown.out
    assert "1 events: malformed" in shown.err
    assert "1 events: not a name" in shown.err


async def test_timeline_writes_an_svg_file_or_json(server: EmbeddedServer, tmp_path: Path) -> None:
    async with connect(server.url) as connection:
        await store_events(connection)
    made = await run(
        "timeline", "web", "--since", "all", "--svg", "x.svg", cwd=tmp_path, NATS_URL=server.url
    )
    assert (made.code, made.out) == (0, "")
    assert "x.svg: 2 instances of web" in made.err
    root = ElementTree.parse(tmp_path / "x.svg").getroot()  # noqa: S314, it is our own
    assert not [element for element in root.iter() if element.tag.endswith("script")]
    result = [element.text or "" for element in root.iter() if element.tag.endswith("title")]
    assert any("</text><script>�[31m&" in text for text in result)
    found = (await run("timeline", "web", "--json", cwd=tmp_path, NATS_URL=server.url)).json
    assert [life["instance_id"] for life in found["lives"]] == ["web-1", "web-2"]
    assert [life["ended"] for life in found["lives"]] == [None, "Failed"]
    assert found["lives"][0]["spans"][-1] == {
        "state": "Ready",
        "begin": found["lives"][0]["last"]["at"],
        "end": found["end"],
    }


async def test_timeline_of_a_service_without_events_says_so(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with connect(server.url) as connection:
        await store_events(connection)
    shown = await run("timeline", "jobs", cwd=tmp_path, NATS_URL=server.url)
    assert (shown.code, shown.out) == (0, "no events\n")


# ── relay ────────────────────────────────────────────────────────────────────────────────


async def test_relay_prints_its_notices_and_ends_on_a_signal(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("Bearer s3cret\n")
    async with connect(server.url) as connection, receiving() as receiver:
        await topology.ensure(connection)
        to = receiver.url.replace("http://", "http://me:pw@") + "?key=s3cret"
        header = "X-Token=@token"
        arguments = ("relay", "web", "--to", to, "--header", header, "--state", "Failed")
        async with running(*arguments, cwd=tmp_path, NATS_URL=server.url) as relay:
            started = await relay.wait_for("started: events of web to (.*), as durable relay")
            assert started[1] == receiver.url
            await tell(connection, "web-1", 1)
            await tell(connection, "web-1", 2, state=S.FAILED)
            await eventually(lambda: receiver.taken == ["web-1.2"])
            assert receiver.requests[0].headers["X-Token"] == "Bearer s3cret"
            assert receiver.requests[0].headers["Authorization"].startswith("Basic ")
            await receiver.stop()
            await tell(connection, "web-1", 3, state=S.FAILED)
            await tell(connection, "web-2", 3, state=S.FAILED)
            await relay.wait_for("outage: .* accepts no event")
            await receiver.start()
            await relay.wait_for("recovered: .* answers again")
            relay.process.send_signal(signal.SIGINT)
            assert await relay.wait() == 0
            await relay.wait_for("stopped: 3 delivered, ")
            assert "s3cret" not in "".join(relay.out + relay.err)


async def test_relay_prints_its_notices_as_json(server: EmbeddedServer, tmp_path: Path) -> None:
    async with connect(server.url) as connection, receiving(lambda request: 410) as receiver:
        await topology.ensure(connection)
        arguments = ("relay", "--to", receiver.url, "--json", "-s", server.url)
        async with running(*arguments, cwd=tmp_path) as relay:
            await relay.wait_for('"started"')
            await tell(connection, "web-1", 1)
            await relay.wait_for('"dead_letter"')
            relay.process.send_signal(signal.SIGTERM)
            assert await relay.wait() == 0
        notices = [json.loads(line) for line in relay.out]
        assert [notice["what"] for notice in notices] == ["started", "dead_letter", "stopped"]
        assert notices[-1]["counts"] == {"delivered": 0, "retried": 0, "dead": 1, "left": 0}


async def test_relay_continues_when_its_reader_leaves(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with connect(server.url) as connection, receiving(lambda request: 410) as receiver:
        await topology.ensure(connection)
        arguments = ("relay", "--to", receiver.url, "--json", "-s", server.url)
        program = await spawn(*arguments, cwd=tmp_path)
        try:
            assert program.stdout is not None
            assert program.stderr is not None
            assert b'"started"' in await program.stdout.readline()
            program._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
            for number in (1, 2):
                await tell(connection, "web-1", number)
                await eventually(lambda: len(receiver.requests) == number)  # noqa: B023
            program.send_signal(signal.SIGTERM)
            async with asyncio.timeout(60):
                assert await program.wait() == 0
            assert await program.stderr.read() == b""
        finally:
            if program.returncode is None:
                program.kill()
                await program.wait()


async def test_relay_that_waits_for_its_stream_ends_on_sigterm(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with connect(server.url) as connection:  # and no Box has made the streams
        arguments = ("relay", "--to", "http://127.0.0.1:9/", "-s", server.url)
        async with running(*arguments, cwd=tmp_path) as relay:

            async def waiting() -> bool:
                names = [info.config.name for info in await jetstream(connection).streams_info()]
                return names == ["BOX_DEAD"]

            await eventually(waiting)
            relay.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(60):
                assert await relay.wait() == 0


async def test_the_systemd_unit_of_the_relay_runs_it(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    unit = REPOSITORY / "deploy" / "systemd" / "box-bridge-relay.service"
    [line] = [line for line in unit.read_text().splitlines() if line.startswith("ExecStart=")]
    flags = "--durable alerts --state Failed"
    line = line.replace("${RELAY_TO}", "http://127.0.0.1:9/").replace("$RELAY_FLAGS", flags)
    program, *arguments = shlex.split(line.removeprefix("ExecStart="))
    assert Path(program).name == "box-bridge"
    async with connect(server.url) as connection:
        await topology.ensure(connection)
    async with running(*arguments, cwd=tmp_path, NATS_URL=server.url) as relay:
        await relay.wait_for("as durable alerts")
        relay.process.send_signal(signal.SIGTERM)
        assert await relay.wait() == 0
