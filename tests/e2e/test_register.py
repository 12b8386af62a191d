"""`box-bridge register`: a program that knows nothing of NATS, announced while it serves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.protocol import InstanceDeregistration, InstanceRegistration, decode
from tests.boxes import boxed, fetch, gone, serving
from tests.e2e.program import Program, run, running
from tests.paths import HTTP_SERVICE, REPOSITORY
from tests.support import Recorder, ask, connect, eventually, service_table


class Wrapped:
    """A wrapped test service, and what gateways hear of it."""

    def __init__(self, program: Program, recorder: Recorder, endpoint: str) -> None:
        self.program = program
        self.recorder = recorder
        self.endpoint = endpoint

    def registrations(self) -> list[InstanceRegistration]:
        return [
            decode(InstanceRegistration, message.data)
            for message in self.recorder.messages
            if ".register." in message.subject
        ]

    async def registered(self) -> InstanceRegistration:
        return (await eventually(self.registrations))[0]

    async def withdrawn(self) -> str:
        """Why it was withdrawn, once it was; nothing may follow that."""
        last = await eventually(
            lambda: next((m for m in self.recorder.messages if ".deregister." in m.subject), None)
        )
        assert self.recorder.messages[-1] is last
        return decode(InstanceDeregistration, last.data).reason

    async def get(self, path: str = "/") -> Any:
        def answer() -> Any:
            with urllib.request.urlopen(f"http://{self.endpoint}{path}", timeout=20) as response:
                return json.loads(response.read())

        return await asyncio.to_thread(answer)


async def ended(program: Program) -> None:
    """End it with all that it runs: killed, it would leave that behind."""
    with contextlib.suppress(ProcessLookupError):
        program.process.send_signal(signal.SIGTERM)
        program.process.send_signal(signal.SIGTERM)
    await program.wait()


@asynccontextmanager
async def wrapped(
    server: EmbeddedServer, tmp_path: Path, port: int, *words: str, flags: tuple[str, ...] = ()
) -> AsyncIterator[Wrapped]:
    """The test service under `box-bridge register`; `words` are the service's own."""
    endpoint = f"127.0.0.1:{port}"
    command = [sys.executable, str(HTTP_SERVICE), str(port), *words]
    arguments = ["--service", "web", "--endpoint", endpoint, "--probe", "http:/", "-s", server.url]
    async with connect(server.url) as connection:
        await topology.ensure(connection)
        recorder = await Recorder.listening(connection)
        async with running("register", *arguments, *flags, "--", *command, cwd=tmp_path) as program:
            try:
                yield Wrapped(program, recorder, endpoint)
            finally:
                await ended(program)


async def test_a_program_is_registered_when_it_serves_and_serves_on_after_its_withdrawal(
    server: EmbeddedServer, tmp_path: Path, unused_port: int
) -> None:
    flags = ("--id", "web-1", "--metadata", "zone=a", "--metadata", "v=1=2")
    async with wrapped(server, tmp_path, unused_port, flags=flags) as service:
        result = await service.registered()
        assert (result.instance_id, result.service) == ("web-1", "web")
        assert (result.endpoint, result.metadata) == (service.endpoint, {"zone": "a", "v": "1=2"})
        pid = (await service.get())["pid"]
        service.program.process.send_signal(signal.SIGTERM)
        assert await service.withdrawn() == "SIGTERM"
        assert (await service.get())["pid"] == pid  # it serves on for a second
        assert await service.program.wait() == 128 + signal.SIGTERM
        await gone(pid)


async def test_a_program_that_exits_is_withdrawn_and_its_exit_code_is_passed_on(
    server: EmbeddedServer, tmp_path: Path, unused_port: int
) -> None:
    async with wrapped(server, tmp_path, unused_port) as service:
        await service.registered()
        with pytest.raises(ConnectionError):
            await service.get("/exit?3")
        assert await service.withdrawn() == "exited with code 3"
        assert await service.program.wait() == 3


async def test_a_program_that_is_killed_is_withdrawn_and_the_signal_is_reported(
    server: EmbeddedServer, tmp_path: Path, unused_port: int
) -> None:
    async with wrapped(server, tmp_path, unused_port) as service:
        await service.registered()

        os.kill((await service.get())["pid"], signal.SIGKILL)
        assert await service.withdrawn() == "killed by signal 9"
        assert await service.program.wait() == 128 + signal.SIGKILL


@pytest.mark.slow
async def test_a_program_that_fails_its_probe_is_unhealthy_until_it_passes(
    server: EmbeddedServer, tmp_path: Path, unused_port: int
) -> None:
    flags = ("--probe-interval", "0.05")
    async with wrapped(server, tmp_path, unused_port, flags=flags) as service:
        await service.registered()
        await service.get("/break")
        await eventually(lambda: service.registrations()[-1].metadata == {"box-healthy": "false"})
        await service.program.wait_for(r"is unhealthy: HTTP 500 on /")
        await service.get("/mend")
        await eventually(lambda: service.registrations()[-1].metadata == {})


@pytest.mark.slow
async def test_a_program_that_does_not_end_is_killed_after_its_grace_or_a_second_signal(
    server: EmbeddedServer, tmp_path: Path, unused_port: int
) -> None:
    flags = ("--grace", "0.2", "--deregister-delay", "0")
    async with wrapped(server, tmp_path, unused_port, "ignore-term", flags=flags) as service:
        await service.registered()
        service.program.process.send_signal(signal.SIGTERM)
        assert await service.program.wait() == 128 + signal.SIGKILL
    patient = ("--grace", "3600", "--deregister-delay", "3600")
    async with wrapped(server, tmp_path, unused_port, flags=patient) as service:
        await service.registered()
        service.program.process.send_signal(signal.SIGINT)
        assert await service.withdrawn() == "SIGINT"
        service.program.process.send_signal(signal.SIGINT)
        assert await service.program.wait() == 128 + signal.SIGKILL


async def test_a_program_that_never_serves_fails_and_is_never_registered(
    server: EmbeddedServer, tmp_path: Path, unused_port: int
) -> None:
    flags = ("--start-timeout", "0.3")
    async with wrapped(server, tmp_path, unused_port, "never-listen", flags=flags) as service:
        await service.program.wait_for(r"not ready within 0.3 s: ")
        assert await service.program.wait() == 1
        assert not service.recorder.messages


async def test_other_signals_reach_the_program(
    server: EmbeddedServer, tmp_path: Path, unused_port: int
) -> None:
    script = "trap 'exit 9' USR1; echo trapped; while :; do sleep 0.05; done"
    arguments = ["--service", "web", "--endpoint", f"127.0.0.1:{unused_port}", "-s", server.url]
    async with running("register", *arguments, "--", "sh", "-c", script, cwd=tmp_path) as program:
        await program.wait_for("trapped")
        program.process.send_signal(signal.SIGUSR1)
        assert await program.wait() == 9


async def test_register_works_under_a_box(server: EmbeddedServer, tmp_path: Path) -> None:
    wrapper = [sys.executable, "-m", "bridge.cli", "register", "--probe", "http:/", "--"]
    table = service_table(
        "web",
        command=[*wrapper, sys.executable, "-S", "-E", str(HTTP_SERVICE), "{port}"],
        registration="self",
        env={"PYTHONPATH": str(REPOSITORY)},
        metadata={"zone": "a"},
    )
    async with boxed(server, tmp_path, table) as (gateway, recorder):
        await ask(gateway, "web", 1)
        [info] = await serving(gateway, "web", 1)
        subject = f"box.register.web.{info.id}"
        first = await eventually(
            lambda: next((m for m in recorder.messages if m.subject == subject), None), within=20
        )
        result = decode(InstanceRegistration, first.data)
        assert (result.endpoint, result.metadata) == (info.endpoint, {"zone": "a"})
        pid = (await fetch(info))["pid"]
        await ask(gateway, "web", 0)
        await recorder.reached(info.id, "Stopped")
        await gone(pid)
        withdrawals = [m for m in recorder.messages if ".deregister." in m.subject]
        assert [decode(InstanceDeregistration, m.data).reason for m in withdrawals] == [
            "scaled down"
        ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--service", "web", "--endpoint", "a:1"], "no program is given"),
        (["--service", "web", "--endpoint", "a", "--", "true"], 'is not "host:port"'),
        (["--service", "A", "--endpoint", "a:1", "--", "true"], "is not a name"),
        (["--service", "web", "--", "true"], "BOX_ADDRESS and PORT"),
        (["--endpoint", "a:1", "--", "true"], "BOX_SERVICE"),
        (["--service", "w", "--endpoint", "a:1", "--probe", "udp", "--", "true"], "tcp or http:"),
        (["--service", "w", "--endpoint", "a:1", "--probe", "http:x", "--", "true"], "must be a"),
        (["--service", "w", "--endpoint", "a:1", "--metadata", "x", "--", "true"], "KEY=VALUE"),
    ],
)
async def test_wrong_usage_of_register_is_reported_with_exit_code_2(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = await run("register", *arguments, cwd=tmp_path)
    assert result.code == 2
    assert message in result.err
