"""`box-bridge events` as a user has it: what was, what comes, and going on where a run ended."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge import InstanceEvent, InstanceState
from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.api import jetstream
from bridge.bus.jetstream.publish import store
from bridge.protocol import encode
from tests.e2e.program import run, running
from tests.stored_events import age_out, tell
from tests.support import connect, eventually

S = InstanceState


@pytest.fixture
async def fleet(server: EmbeddedServer) -> AsyncIterator[Connection]:
    async with connect(server.url) as connection:
        await topology.ensure(connection)
        yield connection


def messages(out: str) -> list[str]:
    """The messages of the events in lines of JSON."""
    return [json.loads(line)["message"] for line in out.splitlines()]


async def test_events_no_follow_shows_the_stored_events_and_ends(
    fleet: Connection, server: EmbeddedServer, tmp_path: Path
) -> None:
    await tell(fleet, "w1", "w2")
    await tell(fleet, "a1", service="api", state=S.FAILED)
    await tell(fleet, "d1", service="db", state=S.STOPPED)
    base = ("events", "--no-follow", "--json", "-s", server.url)
    assert messages((await run(*base, cwd=tmp_path)).out) == ["w1", "w2", "a1", "d1"]
    assert messages((await run(*base, "--since", 3, cwd=tmp_path)).out) == ["a1", "d1"]
    assert messages((await run(*base, "--since", "1h", "api", "db", cwd=tmp_path)).out) == [
        "a1",
        "d1",
    ]
    states = ("--state", "Failed", "--state", "stopped")
    shown = await run(*base, "--since", "all", *states, cwd=tmp_path)
    assert (shown.code, messages(shown.out), shown.err) == (0, ["a1", "d1"], "")
    plain = await run("events", "--no-follow", "web", "-s", server.url, cwd=tmp_path)
    assert [line.split()[-1] for line in plain.out.splitlines()] == ["w1", "w2"]


async def test_events_reports_deleted_events_on_stderr(
    fleet: Connection, server: EmbeddedServer, tmp_path: Path
) -> None:
    await tell(fleet, "a", "b")
    await age_out(fleet)
    await tell(fleet, "c")
    shown = await run(
        "events", "--no-follow", "--json", "--since", 1, "-s", server.url, cwd=tmp_path
    )
    assert (shown.code, messages(shown.out)) == (0, ["c"])
    assert shown.err == "no longer kept: stream sequences 1–2\n"


@pytest.mark.parametrize("durable", [(), ("--durable", "mailer")])
async def test_events_reports_messages_that_are_no_events_on_stderr(
    fleet: Connection, server: EmbeddedServer, tmp_path: Path, durable: tuple[str, ...]
) -> None:
    await tell(fleet, "w1")
    await store(fleet, "box.events.web", b"hello from a shell")
    foreign = InstanceEvent.transition("api-1", "api", S.BOOTING, S.READY)
    await store(fleet, "box.events.web", encode(foreign))
    await tell(fleet, "w2")
    base = ("events", "--no-follow", "-s", server.url, "--since", "all")
    shown = await run(*base, *durable, cwd=tmp_path)
    assert [line.split()[-1] for line in shown.out.splitlines()] == ["w1", "w2"]
    first, second = shown.err.splitlines()
    assert first.startswith(
        "skipped message 1 that is no event, on box.events.web: InstanceEvent: not JSON"
    )
    assert second.startswith("skipped message 2 that is no event, on box.events.web: subject")
    names = ("--durable", "other") if durable else ()
    shown = await run(*base, "--json", *names, cwd=tmp_path)
    assert messages(shown.out) == ["w1", "w2"]
    assert [json.loads(line)["refused"] for line in shown.err.splitlines()] == [1, 2]


async def test_events_since_shows_stored_events_and_then_new_ones(
    fleet: Connection, server: EmbeddedServer, tmp_path: Path
) -> None:
    await tell(fleet, "was")
    async with running("events", "--since", "10m", "-s", server.url, cwd=tmp_path) as events:
        await events.wait_for("was")
        await tell(fleet, "comes")
        await events.wait_for("comes")
        events.process.send_signal(signal.SIGINT)
        assert await events.wait() == 0


async def test_events_durable_continues_where_the_last_run_ended(
    fleet: Connection, server: EmbeddedServer, tmp_path: Path
) -> None:
    base = ("events", "--json", "--durable", "mail", "-s", server.url)
    await tell(fleet, "a", "b")
    async with running(*base, cwd=tmp_path) as first:
        await first.wait_for('"b"')

        async def acknowledged() -> bool:
            info = await jetstream(fleet).consumer_info("BOX_EVENTS", "mail")
            return not (info.num_pending or info.num_ack_pending)

        await eventually(acknowledged)
        first.process.send_signal(signal.SIGINT)
        assert await first.wait() == 0
    await tell(fleet, "c")
    second = await run(*base, "--no-follow", cwd=tmp_path)
    assert (second.code, messages(second.out)) == (0, ["c"])
    assert (await run(*base, "--no-follow", cwd=tmp_path)).out == ""
    other = await run(*base, "--no-follow", "web", cwd=tmp_path)
    assert other.code == 1
    assert "durable mail exists: it reads box.events.*, not box.events.web" in other.err


async def test_events_refuses_wrong_flags_and_does_not_wait_for_a_missing_stream(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    for wrong in (("--since", "soon"), ("a.b",), ("--durable", "a.b"), ("--state", "Fine")):
        result = await run("events", "--no-follow", "-s", server.url, *wrong, cwd=tmp_path)
        assert (result.code, result.out) == (2, "")
    result = await run("events", "--no-follow", "--since", "5m", "-s", server.url, cwd=tmp_path)
    assert result.code == 3
    assert "no Box has run on NATS" in result.err
