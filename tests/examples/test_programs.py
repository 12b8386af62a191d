"""The example programs, run as their docstrings say, on a real server."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from bridge import RouteTable, ScaleClient
from bridge.bus.embedded_server import EmbeddedServer
from tests.boxes import boxed, fetch, serving
from tests.e2e.program import Program, environment
from tests.paths import EXAMPLES, REPOSITORY
from tests.support import PORTS, ask, eventually


@asynccontextmanager
async def started(*arguments: object, cwd: Path, url: str) -> AsyncIterator[Program]:
    """A program as a user of the repository would start it."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *map(str, arguments)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=cwd,
        env=environment(
            PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            PYTHONPATH=str(REPOSITORY),
            NATS_URL=url,
            BOX_BRIDGE_PORTS=PORTS,
        ),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    program = Program(process)
    async with asyncio.TaskGroup() as readers:
        readers.create_task(program.read(process.stdout, program.out))
        readers.create_task(program.read(process.stderr, program.err))
        try:
            yield program
        finally:
            if process.returncode is None:
                process.terminate()
            try:
                async with asyncio.timeout(20):
                    await process.wait()
            except TimeoutError:
                process.kill()


@pytest.mark.slow
async def test_the_gateway_in_front_of_two_boxes_forwards_to_a_service_that_registers_itself(
    server: EmbeddedServer, tmp_path: Path, unused_port: int
) -> None:
    for name in ("box.toml", "box-b.toml", "service.py"):
        shutil.copy(EXAMPLES / name, tmp_path)
    box = ("-m", "bridge.cli", "box", "--on-exit", "drain", "-c")
    async with (
        started(*box, "box.toml", cwd=tmp_path, url=server.url) as host,
        started(*box, "box-b.toml", cwd=tmp_path, url=server.url) as second,
        started(EXAMPLES / "gateway.py", unused_port, cwd=tmp_path, url=server.url),
        ScaleClient.connect(server.url) as client,
        aiohttp.ClientSession(f"http://127.0.0.1:{unused_port}") as browser,
    ):
        await host.wait_for("box-a is ready")
        await second.wait_for("box-b is ready")
        await client.scale("hello", 2, wait=True, timeout=60)
        seen = await client.observe("hello")
        ready = {info.id for info in seen.instances}
        assert {seen.hosts[instance_id] for instance_id in ready} == {"box-a", "box-b"}
        assert len(ready) == 2

        async def answered() -> bool:
            """Whether both instances have answered through the gateway."""
            found = set()
            for _ in range(20):
                async with browser.get("/hello/") as answer:
                    if answer.status == 200:
                        found.add((await answer.json())["hello"])
            return found == ready

        await eventually(answered, within=30)
        async with browser.get("/unknown/") as answer:
            assert answer.status == 503
            assert "no instance of unknown takes traffic" in await answer.text()
        async with RouteTable.open(client.connection, "hello") as table:
            await client.scale("hello", 0)
            await eventually(lambda: not table.endpoints("hello"))


async def test_the_consumer_reports_each_failure_once_over_a_kill(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path) as (gateway, recorder):
        await ask(gateway, "web", 2)
        first, second = await serving(gateway, "web", 2)
        consumer = (EXAMPLES / "consumer.py",)
        async with started(*consumer, cwd=tmp_path, url=server.url) as program:
            os.kill((await fetch(first))["pid"], signal.SIGKILL)
            await program.wait_for(f"{first.id} failed: killed by signal 9")
            program.process.kill()
        os.kill((await fetch(second))["pid"], signal.SIGKILL)
        await recorder.reached(second.id, "Failed")
        async with started(*consumer, cwd=tmp_path, url=server.url) as program:
            await program.wait_for(f"{second.id} failed: killed by signal 9", within=40)
            assert (
                len(program.out) <= 2
            )  # the first one comes again if its kill came before the ack
