"""Get started: the pages' own commands, in real shells, show what the pages show."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.docs.fences import commands, fences
from tests.docs.terminals import Terminals, terminals
from tests.e2e.program import environment
from tests.paths import REPOSITORY
from tests.support import PORTS

_FILES = {"toml": "box.toml", "python": "readme.py"}
README = "../README.md"
PAGES = ("first-scale.md", "first-event.md", "first-route.md")


def endpoint(lines: list[str]) -> str:
    """The first endpoint of an instance that was printed: its port differs from run to run."""
    return next(found[1] for line in lines if (found := re.search(r" (127\.0\.0\.1:\d+) ", line)))


async def follow(page: str, directory: Path, opened: Terminals, up: str) -> int:
    """Do what the page says; how many commands that were."""
    count = 0
    for fence in fences(page):
        if page == README and fence.language == "console" and not fence.title:
            continue  # the commands of a clone
        if fence.language in ("toml", "python"):
            (directory / (fence.title or _FILES[fence.language])).write_text(fence.text)
        terminal = await opened.get(fence.title) if "terminal" in fence.title else None
        if fence.language == "output":
            assert terminal is not None
            await terminal.wait_for(fence.text.splitlines())
        elif fence.language == "console":
            assert terminal is not None, f"{page}: in which terminal?"
            for command in commands(fence):
                text = command.text.replace("box-bridge up", up)
                if text.startswith("curl"):
                    text = text.replace("127.0.0.1:20000", endpoint(terminal.lines))
                await terminal.type(text, command.output)
                count += 1
    return count


@pytest.mark.slow
async def test_each_command_of_get_started_shows_what_its_page_shows(
    tmp_path: Path, unused_port: int
) -> None:
    env = environment(
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        NATS_URL=f"nats://127.0.0.1:{unused_port}",
        BOX_BRIDGE_PORTS=PORTS,
        PYTHONUNBUFFERED="1",
    )
    async with terminals(tmp_path, env) as opened:
        for page in PAGES:
            up = f"box-bridge up --port {unused_port}"
            assert await follow(f"get-started/{page}", tmp_path, opened, up) >= 3
        [program] = [fence for fence in fences("../README.md") if fence.language == "python"]
        (tmp_path / "readme.py").write_text(program.text.replace("4222", str(unused_port)))
        terminal = await opened.get("terminal 2")
        await terminal.type("python3 readme.py", ["send the request to 127.0.0.1:20000"])


@pytest.mark.slow
async def test_the_tour_of_the_readme_works_with_events_opened_before_the_first_scale(
    tmp_path: Path, unused_port: int
) -> None:
    env = environment(
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        NATS_URL=f"nats://127.0.0.1:{unused_port}",
        BOX_BRIDGE_PORTS=PORTS,
        PYTHONUNBUFFERED="1",
    )
    async with terminals(tmp_path, env) as opened:
        up = f"box-bridge up --port {unused_port}"
        assert await follow(README, tmp_path, opened, up) == 5
        await (await opened.get("terminal 3")).wait_for(["command ended with 0"])
        await (await opened.get("terminal 2")).wait_for(
            ["09:28:47.405  web-p7kf4v386f  booting → ready"]
        )


@pytest.mark.slow
async def test_the_commands_of_install_install_it_from_a_clone(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    shutil.copytree(
        REPOSITORY, clone, ignore=shutil.ignore_patterns(".*", "build", "node_modules", "tests")
    )
    more = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_"))}
    async with terminals(clone, environment(HOME=str(tmp_path), **more)) as opened:
        [fence] = fences("get-started/install.md")
        terminal = await opened.get("terminal")
        for command in commands(fence):
            await terminal.type(command.text, command.output)
