"""A failure of an instance is reported, and the instance is replaced."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from bridge.box.runner.supervisor import Supervisor
from bridge.bus.embedded_server import EmbeddedServer
from bridge.protocol import (
    InstanceState,
)
from tests.boxes import boxed, fetch, first_failure, instances, serving
from tests.support import ask, eventually, service_table

S = InstanceState


async def test_a_killed_instance_fails_and_is_replaced_in_its_slot(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path) as (gateway, recorder):
        await ask(gateway, "web", 2)
        before = await serving(gateway, "web", 2)
        os.kill((await fetch(before[0]))["pid"], signal.SIGKILL)
        await recorder.reached(before[0].id, "Failed")
        assert recorder.of(before[0].id)[-1].message.startswith("killed by signal 9")

        async def replaced() -> bool:
            ids = {info.id for info in await serving(gateway, "web", 2)}
            return before[0].id not in ids and before[1].id in ids

        await eventually(replaced)


async def test_a_failure_reports_the_exit_code_and_the_last_log_line(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path) as (gateway, recorder):
        await ask(gateway, "web", 1)
        [info] = await serving(gateway, "web", 1)
        with pytest.raises(ConnectionError):
            await fetch(info, "/exit?3")
        await recorder.reached(info.id, "Failed")
        assert recorder.of(info.id)[-1].message == "exited with code 3: told to exit"


async def test_a_crash_loop_backs_off_and_stays_desired(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path, service_table("web", "crash")) as (gateway, recorder):
        await ask(gateway, "web", 1)

        def failures() -> list[Any]:
            return [event for _, event in recorder.events if event.to_state is S.FAILED]

        await eventually(lambda: len(failures()) >= 4)
        assert {event.message for event in failures()} == {
            "exited with code 7: no database to be found"
        }
        assert len({event.instance_id for event in failures()}) == len(failures())
        times = [event.timestamp for event in failures()]
        gaps = [(b - a).total_seconds() for a, b in itertools.pairwise(times)]
        assert gaps[0] >= 0.2
        assert gaps[1] >= 0.4
        assert gaps[2] >= 0.8
        answer = await ask(gateway, "web", 1)
        assert answer.target_replicas == 1


@pytest.mark.slow
async def test_a_crash_loop_is_retried_while_the_box_is_busy_with_another_service(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attend, busy = Supervisor._attend, 0

    async def slow(self: Supervisor, service: str) -> None:
        nonlocal busy
        await attend(self, service)
        if service == "web":  # its plan is slow, and it changes constantly
            busy += 1
            await asyncio.sleep(0.3)
            self.plan_needed(["web"])

    monkeypatch.setattr(Supervisor, "_attend", slow)
    tables = service_table("web"), service_table("jobs", "crash")
    async with boxed(server, tmp_path, *tables) as (gateway, recorder):
        await ask(gateway, "jobs", 1)

        def failures() -> int:
            return sum(event.to_state is S.FAILED for _, event in recorder.events)

        await eventually(lambda: failures() >= 5)
        assert busy > 5


async def test_an_instance_that_is_never_ready_fails_at_its_timeout(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    table = service_table("web", "never-listen", start_timeout=0.3)
    async with boxed(server, tmp_path, table) as (gateway, recorder):
        await ask(gateway, "web", 1)
        event = await first_failure(recorder)
        assert event.message == "not ready within 0.3 s: nothing listens on its port"
        assert event.from_state is S.BOOTING


async def test_a_missing_command_is_reported(server: EmbeddedServer, tmp_path: Path) -> None:
    table = service_table("web", command=["no-such-program", "{port}"])
    async with boxed(server, tmp_path, table) as (gateway, recorder):
        await ask(gateway, "web", 1)
        event = await first_failure(recorder)
        assert event.message.startswith("exited with code 127")
        assert "no-such-program" in event.message


async def test_health_follows_the_probe_and_is_reported_as_a_note(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    table = service_table(
        "web", probe={"http": "/", "interval": 0.05, "timeout": 10.0, "failures": 2}
    )
    async with boxed(server, tmp_path, table) as (gateway, recorder):
        await ask(gateway, "web", 1)
        [info] = await serving(gateway, "web", 1)

        def notes() -> list[str]:
            return [e.message for e in recorder.of(info.id) if e.from_state is e.to_state]

        await fetch(info, "/break")
        await eventually(lambda: notes() == ["unhealthy: HTTP 500 on /"])

        async def unhealthy() -> bool:
            return not (await instances(gateway))[0].health.healthy

        await eventually(unhealthy)
        await fetch(info, "/mend")
        await eventually(lambda: len(notes()) == 2)
        assert notes()[1] == "healthy: the probe passes"
