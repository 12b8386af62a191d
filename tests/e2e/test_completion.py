"""Completion in the shells that people use: what the TAB key writes."""

from __future__ import annotations

import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge.bus.embedded_server import EmbeddedServer
from tests.boxes import boxed
from tests.e2e.program import run
from tests.e2e.pseudo_terminal import program_on_terminal
from tests.support import eventually, service_table

START = {
    "bash": ["--noprofile", "--rcfile", "start", "-i"],
    "zsh": ["-f", "-i"],
    "fish": ["--no-config", "--private", "-i"],
}
READ = {
    "bash": "",
    "zsh": "source ./start\r",
    "fish": "source ./start\r",
}
BEFORE = {"bash": "PS1='ready> '\n", "zsh": "PS1='ready> '; autoload -U compinit; compinit -u\n"}
AFTER = {"fish": "\nfunction fish_prompt; echo 'ready> '; end\n"}


@pytest.fixture
async def fleet(home: Path, server: EmbeddedServer) -> AsyncIterator[EmbeddedServer]:
    program = home / "box-bridge"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m bridge.cli "$@"\n')
    program.chmod(0o755)
    async with boxed(server, home, service_table("worker-of-letters")):
        yield server


async def names(verb: str, home: Path, url: str) -> list[str]:
    """What a TAB after `verb` offers, once a Box has answered."""

    async def listed() -> list[str]:
        printed = await run("__complete", verb, "", cwd=home, HOME=str(home), NATS_URL=url)
        assert printed.err == ""
        return printed.out.split()[1:]

    return await eventually(listed)


@pytest.mark.slow
@pytest.mark.parametrize("shell", START)
async def test_tab_completes_verbs_flags_values_and_live_names(
    shell: str, home: Path, fleet: EmbeddedServer
) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = (await run("completion", shell, cwd=home)).out
    (home / "start").write_text(BEFORE.get(shell, "") + script + AFTER.get(shell, ""))
    env = {"PATH": f"{home}:/usr/bin:/bin", "HOME": str(home), "NATS_URL": fleet.url}
    assert await names("drain", home, fleet.url) == ["box-a"]  # so that no TAB has to wait
    async with program_on_terminal(shutil.which(shell), *START[shell], cwd=home, **env) as terminal:
        terminal.type(READ[shell])
        await terminal.wait_for("ready> ")
        for typed, completed in (
            ("box-bridge time\t", "box-bridge timeline"),
            ("box-bridge scale work\t", "box-bridge scale worker-of-letters"),
            ("box-bridge drain bo\t", "box-bridge drain box-a"),
            ("box-bridge up --max-inst\t", "box-bridge up --max-instances"),
            ("box-bridge up --on-exit le\t", "box-bridge up --on-exit leave"),
        ):
            terminal.type(typed)
            await terminal.wait_for(completed)
            terminal.type("\x15")  # Ctrl-U


async def test_the_names_come_from_the_boxes(home: Path, fleet: EmbeddedServer) -> None:
    await run("scale", "worker-of-letters", 1, "--wait", "-s", fleet.url, cwd=home)
    assert await names("scale", home, fleet.url) == ["worker-of-letters"]
    assert len(await names("logs", home, fleet.url)) == 2


async def test_without_nats_there_are_no_names_and_no_words(home: Path) -> None:
    printed = await run(
        "__complete", "scale", "", cwd=home, HOME=str(home), NATS_URL="nats://127.0.0.1:1"
    )
    assert (printed.code, printed.out, printed.err) == (0, "\n\x1fbegin\n", "")
