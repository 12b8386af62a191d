"""`box-bridge events` as a user has it: what was, what comes, and going on where a run ended."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from bridge import InstanceState, Start
from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.api import jetstream
from bridge.cli.since import parse_since
from bridge.errors import ConfigError
from tests.e2e.program import run, running
from tests.support import connect, eventually
from tests.telling import age_out, tell

S = InstanceState


@pytest.fixture
async def fleet(server: EmbeddedServer) -> AsyncIterator[Connection]:
    async with connect(server.url) as connection:
        await topology.ensure(connection)
        yield connection


def said(out: str) -> list[str]:
    """The messages of the events in lines of JSON."""
    return [json.loads(line)["message"] for line in out.splitlines()]


def test_since_is_all_a_sequence_or_how_long_ago() -> None:
    assert parse_since("all") is Start.FIRST
    assert parse_since("17") == 17
    assert parse_since("0") == 1
    assert parse_since("90s") == timedelta(seconds=90)
    assert parse_since("10m") == timedelta(minutes=10)
    assert parse_since("7d") == timedelta(days=7)
    for wrong in ("", "10x", "-1", "m", "1.5h", "999999999999d", "٣"):
        with pytest.raises(ConfigError, match="--since"):
            parse_since(wrong)


async def test_the_past_is_shown_and_that_is_all(
    fleet: Connection, server: EmbeddedServer, tmp_path: Path
) -> None:
    await tell(fleet, "w1", "w2")
    await tell(fleet, "a1", service="api", state=S.FAILED)
    await tell(fleet, "d1", service="db", state=S.STOPPED)
    base = ("events", "--no-follow", "--json", "-s", server.url)
    assert said((await run(*base, cwd=tmp_path)).out) == ["w1", "w2", "a1", "d1"]
    assert said((await run(*base, "--since", 3, cwd=tmp_path)).out) == ["a1", "d1"]
    assert said((await run(*base, "--since", "1h", "api", "db", cwd=tmp_path)).out) == ["a1", "d1"]
    states = ("--state", "Failed", "--state", "stopped")
    shown = await run(*base, "--since", "all", *states, cwd=tmp_path)
    assert (shown.code, said(shown.out), shown.err) == (0, ["a1", "d1"], "")
    plain = await run("events", "--no-follow", "web", "-s", server.url, cwd=tmp_path)
    assert [line.split()[-1] for line in plain.out.splitlines()] == ["w1", "w2"]


async def test_what_is_no_longer_kept_is_told_on_stderr(
    fleet: Connection, server: EmbeddedServer, tmp_path: Path
) -> None:
    await tell(fleet, "a", "b")
    await age_out(fleet)
    await tell(fleet, "c")
    shown = await run(
        "events", "--no-follow", "--json", "--since", 1, "-s", server.url, cwd=tmp_path
    )
    assert (shown.code, said(shown.out)) == (0, ["c"])
    assert shown.err == "no longer kept: stream sequences 1–2\n"


async def test_the_past_is_followed_by_what_comes(
    fleet: Connection, server: EmbeddedServer, tmp_path: Path
) -> None:
    await tell(fleet, "was")
    async with running("events", "--since", "10m", "-s", server.url, cwd=tmp_path) as events:
        await events.said("was")
        await tell(fleet, "comes")
        await events.said("comes")
        events.process.send_signal(signal.SIGINT)
        assert await events.ended() == 0


async def test_a_durable_run_goes_on_where_the_last_one_ended(
    fleet: Connection, server: EmbeddedServer, tmp_path: Path
) -> None:
    base = ("events", "--json", "--durable", "mail", "-s", server.url)
    await tell(fleet, "a", "b")
    async with running(*base, cwd=tmp_path) as first:
        await first.said('"b"')

        async def acknowledged() -> bool:
            info = await jetstream(fleet).consumer_info("BOX_EVENTS", "mail")
            return not (info.num_pending or info.num_ack_pending)

        await eventually(acknowledged)
        first.process.send_signal(signal.SIGINT)
        assert await first.ended() == 0
    await tell(fleet, "c")
    second = await run(*base, "--no-follow", cwd=tmp_path)
    assert (second.code, said(second.out)) == (0, ["c"])
    assert (await run(*base, "--no-follow", cwd=tmp_path)).out == ""
    other = await run(*base, "--no-follow", "web", cwd=tmp_path)
    assert other.code == 1
    assert "durable mail exists: it reads box.events.*, not box.events.web" in other.err


async def test_what_cannot_be_is_refused_and_what_is_not_there_is_not_waited_for(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    for wrong in (("--since", "soon"), ("a.b",), ("--durable", "a.b"), ("--state", "Fine")):
        told = await run("events", "--no-follow", "-s", server.url, *wrong, cwd=tmp_path)
        assert (told.code, told.out) == (2, "")
    told = await run("events", "--no-follow", "--since", "5m", "-s", server.url, cwd=tmp_path)
    assert told.code == 3
    assert "BOX_EVENTS" in told.err
