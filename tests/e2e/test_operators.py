"""The verbs of an operator, on two Boxes that are processes of their own."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bridge.admin_protocol import (
    AdminResponse,
    HistoryResponse,
    HostsResponse,
    PlanResponse,
    ServicesResponse,
)
from bridge.bus.embedded_server import EmbeddedServer
from bridge.cli.exit_codes import FAILED, INTERRUPTED, UNANSWERED, USAGE
from bridge.protocol import decode, encode
from tests.boxes import gated
from tests.e2e.program import run, running
from tests.support import FIRST_PORT, TIMING, connect, eventually, service_table


def write_config(directory: Path, name: str, first_port: int, service: str) -> None:
    box = f'[box]\nname = "{name}"\nmax_instances = 4\nports = "{first_port}-{first_port + 99}"'
    directory.mkdir(exist_ok=True)
    (directory / "box.toml").write_text(f"{box}\n{TIMING}\n{service}")


@asynccontextmanager
async def two_boxes(directory: Path, web: str) -> AsyncIterator[str]:
    """The NATS URL of a fleet of box-a and box-b, which run `web`."""
    first, second = directory / "a", directory / "b"
    write_config(first, "box-a", FIRST_PORT, web)
    write_config(second, "box-b", FIRST_PORT + 100, web)
    async with running("up", "--port", "0", cwd=first) as up:
        url = (await up.wait_for(r"NATS server: (nats://\S+)"))[1]
        await up.wait_for("Box box-a is ready")
        async with running("box", "-s", url, "--on-exit", "drain", cwd=second) as box:
            await box.wait_for("Box box-b is ready")
            yield url
            box.process.send_signal(signal.SIGINT)
            assert await box.wait() == 0
        up.process.send_signal(signal.SIGINT)
        assert await up.wait() == 0


async def test_hosts_are_listed_cordoned_drained_rebalanced_and_explained(tmp_path: Path) -> None:
    async with two_boxes(tmp_path, service_table("web")) as url:

        async def output(*arguments: object, code: int = 0) -> str:
            done = await run(*arguments, cwd=tmp_path, NATS_URL=url)
            assert done.code == code, done.err
            return done.out + done.err

        await output("scale", "web", 4, "--wait", "--request-id", "night-shift")
        listed = await output("hosts")
        assert listed.split()[:4] == ["HOST", "STATE", "USED", "SERVICES"]
        assert listed.count("2/4") == 2
        assert "box-a is cordoned" in await output("cordon", "box-a", "--reason", "noisy fan")
        cordoned = await output("hosts")
        assert "live cordoned" in cordoned
        assert "box-a: noisy fan" in cordoned

        planned = await output("plan", "web", 7, code=4)
        assert "web: 4 → 6 (2 to come, 4 to stay)" in planned
        assert "Capped to 6 instances (max 6 total" in planned
        assert "cordoned since" in planned
        plan = decode(PlanResponse, (await output("plan", "web", 5, "--json")).encode())
        assert (plan.accepted, plan.target) == (True, 5)

        drained = await output("drain", "box-a", "--timeout", 60)
        assert "box-a: 2 of 2 gone from it" in drained
        assert "box-a is empty: 2 gone from it" in drained
        again = decode(AdminResponse, (await output("drain", "box-a", "--json")).encode())
        assert (again.done, again.affected) == (True, 0)
        refused = await output("drain", "box-b", code=1)
        assert "the other hosts have no room for what box-b runs (4 of web)" in refused
        assert "drain with force (--force)" in refused
        assert "unknown host 'box-c'" in await output("cordon", "box-c", code=1)
        assert "Must have 500 letters at most" in await output(
            "cordon", "box-b", "--reason", "x" * 501, code=USAGE
        )
        for verb, cls in (
            (("drain", "box-b"), AdminResponse),
            (("cordon", "box-c"), AdminResponse),
            (("uncordon", "box-c"), AdminResponse),
            (("rebalance", "nope"), AdminResponse),
            (("history", "nope"), HistoryResponse),
        ):
            answer = decode(cls, (await output(*verb, "--json", code=1)).encode())
            assert getattr(answer, "error", None), answer
        forced = await output("drain", "box-b", "--force")
        assert "box-b: 4 of 4 gone from it; no host has room for 4 of web" in forced
        assert "box-b is empty: 4 gone from it, and no host has room for 4 of web; " in forced
        assert "box-b: no other host has room for 4 of web" in await output("hosts")

        assert "box-a takes instances again" in await output("uncordon", "box-a")
        await output("scale", "web", 4, "--wait")
        await output("uncordon", "box-b")
        assert "2 would move" in await output("rebalance", "--dry-run")
        assert "2 moved" in await output("rebalance", "web", "--wait", "--timeout", 60)
        assert "nothing to move" in await output("rebalance")
        hosts = decode(HostsResponse, (await output("hosts", "--json")).encode())
        assert [(host.name, host.used, host.order) for host in hosts.hosts] == [
            ("box-a", 2, None),
            ("box-b", 2, None),
        ]
        decisions = await output("history", "web")
        assert "night-shift" in decisions
        assert "rebalance: 2 to move" in decisions
        history = decode(HistoryResponse, (await output("history", "web", "--json")).encode())
        assert [entry.after for entry in history.entries] == [4] * len(history.entries)


@pytest.mark.slow
async def test_each_verb_that_shows_a_service_reports_what_is_missing(tmp_path: Path) -> None:
    bad = service_table("bad", command=["sh", "-c", "exit 3"])
    async with two_boxes(tmp_path, f"{service_table('web')}\n{bad}") as url:

        async def output(*arguments: object, code: int = 0) -> str:
            done = await run(*arguments, cwd=tmp_path, NATS_URL=url)
            assert done.code == code, done.err
            return done.out + done.err

        await output("scale", "web", 5, "--wait")
        await output("drain", "box-a", "--force", "--timeout", 60)
        full = "1 of 5 has no room: 4 of 4 places are taken, 1 more host is cordoned or not ready"

        async def filled() -> bool:
            listed = await output("ps", "web")
            return f"web: {full}" in listed and listed.count(" ready ") == 4

        await eventually(filled)
        assert f"web: {full}" in await output("scale", "web", 5)
        waited = await output("scale", "web", 5, "--wait", "--timeout", 6, code=UNANSWERED)
        assert f"4 of 5 Ready after 6 s. {full}." in waited
        listed = (await output("services")).splitlines()
        assert listed[0].split() == [
            "SERVICE",
            "WANTED",
            "READY",
            "BUSY",
            "OTHER",
            "ROLLOUT",
            "MISSING",
        ]
        assert listed[1].split() == ["bad", "0", "0", "0", "0", "–", "–"]
        assert listed[2].split()[:2] == ["web", "5"]
        assert listed[2].endswith(full)
        found = decode(ServicesResponse, (await output("services", "--json")).encode())
        assert [(item.name, item.wanted, item.missing) for item in found.services] == [
            ("bad", 0, []),
            ("web", 5, [full]),
        ]
        async with running("services", "--watch", cwd=tmp_path, NATS_URL=url) as watch:
            await watch.wait_for("1 of 5 has no room")
            watch.process.send_signal(signal.SIGINT)
            assert await watch.wait() == 0

        await output("uncordon", "box-a")
        await output("scale", "bad", 1)

        async def failing() -> bool:
            return "1 of 1 failed on box-a: exited with code 3; next try in " in await output(
                "ps", "bad"
            )

        await eventually(failing)

        async def planned() -> bool:
            return "bad: 1 → 1 (1 failing)" in await output("plan", "bad", 1)

        await eventually(planned)


@pytest.mark.slow
async def test_ctrl_c_leaves_a_drain_in_effect_and_reports_it(tmp_path: Path) -> None:
    door = tmp_path / "door"
    door.touch()
    async with two_boxes(tmp_path, gated(door, "sleep 1000")) as url:
        await run("scale", "web", 2, "--wait", cwd=tmp_path, NATS_URL=url)
        door.unlink()  # so that no replacement will ever be Ready
        async with running("drain", "box-a", cwd=tmp_path, NATS_URL=url) as drain:
            await drain.wait_for("box-a: 0 of 1 gone from it")
            drain.process.send_signal(signal.SIGINT)
            await drain.wait_for("The drain of box-a goes on; `box-bridge uncordon box-a` ends it")
            assert await drain.wait() == INTERRUPTED
        late = await run("drain", "box-a", "--timeout", "0.5", cwd=tmp_path, NATS_URL=url)
        assert late.code == UNANSWERED
        assert "box-a still has 1 instance after 0.5 s. The drain goes on" in late.err
        async with running("hosts", "--watch", cwd=tmp_path, NATS_URL=url) as watch:
            await watch.wait_for("box-a +live draining +1/4")
            watch.process.send_signal(signal.SIGINT)
            assert await watch.wait() == 0
        asked = await run("drain", "box-a", "--no-wait", cwd=tmp_path, NATS_URL=url)
        assert asked.out == "box-a is being drained: 1 to go from it; see `box-bridge hosts`\n"


async def test_an_error_while_waiting_for_a_drain_reports_that_the_order_stands(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with connect(server.url) as boxes:
        done = encode(AdminResponse(done=True, affected=2))
        await boxes.listen("box.admin", lambda asked: boxes.publish(asked.reply, done))
        await boxes.listen("box.hosts", lambda asked: boxes.publish(asked.reply, b"not JSON"))
        await boxes.flush()
        result = await run("drain", "box-a", cwd=tmp_path, NATS_URL=server.url)
        assert result.code == FAILED
        assert "The drain of box-a goes on; `box-bridge uncordon box-a` ends it" in result.err
        assert "box-bridge: HostsResponse" in result.err
