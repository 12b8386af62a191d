"""The Python programs of the pages: whole, with their imports, and run against a fleet."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from bridge import ScaleClient
from bridge.bus.embedded_server import EmbeddedServer
from tests.boxes import boxed
from tests.docs.fences import fences, pages
from tests.e2e.program import environment
from tests.paths import DOCS, REPOSITORY

PROGRAMS = [
    (str(page.relative_to(DOCS)), number, fence.text)
    for page in pages()
    for number, fence in enumerate(fences(str(page.relative_to(DOCS))))
    if fence.language == "python"
]
UNREACHABLE = "http://127.0.0.1:9/"


def of_a_box(service: str) -> dict[str, str]:
    """What a Box gives an instance that registers itself."""
    return {
        "BOX_INSTANCE_ID": f"{service}-snippet",
        "BOX_SERVICE": service,
        "BOX_ADDRESS": "127.0.0.1",
        "PORT": "8080",
        "BOX_REGISTRATION": "self",
    }


def test_there_are_programs_and_each_defines_what_it_uses(tmp_path: Path) -> None:
    assert len(PROGRAMS) >= 10
    for page, number, text in PROGRAMS:
        (tmp_path / f"{page.replace('/', '_')}_{number}.py").write_text(text)
    checked = subprocess.run(
        [Path(sys.executable).parent / "ruff", "check", "--isolated", "--select", "F", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout


async def first_line(program: Path, url: str, client: ScaleClient, counts: list[int]) -> str:
    """The first line that the program prints; `web` is scaled to each of `counts` meanwhile."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-u", program.name),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=program.parent,
        env=environment(NATS_URL=url, PYTHONPATH=str(REPOSITORY), **of_a_box("other")),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    reading = asyncio.ensure_future(process.stdout.readline())
    async with asyncio.timeout(60):
        for count in itertools.cycle(counts):
            if (await asyncio.wait([reading], timeout=0.5))[0]:
                break
            await client.scale("web", count)
    if process.returncode is None and reading.result():
        process.terminate()
    errors = await process.stderr.read()
    await process.wait()
    return reading.result().decode() or errors.decode()


@pytest.mark.slow
async def test_each_program_prints_what_it_is_for(server: EmbeddedServer, tmp_path: Path) -> None:
    async with boxed(server, tmp_path), ScaleClient.connect(server.url) as client:
        for page, number, text in PROGRAMS:
            counts = [0] if "operator.drain" in text else [3, 2]  # no other host takes instances
            await client.scale("web", counts[-1], wait=True)
            program = tmp_path / f"program_{number}.py"
            text = text.replace("nats://127.0.0.1:4222", server.url)
            program.write_text(text.replace("https://example.com/events", UNREACHABLE))
            printed = await first_line(program, server.url, client, counts)
            assert printed.strip(), page
            assert "Traceback" not in printed, f"{page}: {printed}"
