"""What a person sees: on narrow, dumb and colourless terminals, in old encodings, and at the end
of a terminal.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from bridge.bus.embedded_server import EmbeddedServer
from tests.boxes import boxed, labelled
from tests.e2e.program import run, run_shell, running
from tests.e2e.pseudo_terminal import on_terminal
from tests.support import eventually, service_table

LONG = "a-service-with-a-long-name"
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9]m")


@pytest.mark.parametrize("columns", [60, 80, 140])
async def test_ids_and_states_are_never_cut_and_a_line_fits_the_terminal(
    columns: int, home: Path, server: EmbeddedServer
) -> None:
    async with boxed(server, home, service_table(LONG)):
        await run("scale", LONG, 2, "--wait", "-s", server.url, cwd=home)
        listed = (await run("ps", "--json", "-s", server.url, cwd=home)).json
        ids = [info["id"] for info in listed["instances"]]
        async with on_terminal("ps", "-s", server.url, cwd=home, columns=columns) as terminal:
            assert await terminal.wait() == 0
            rows = [line.split() for line in terminal.lines]
        state = rows[0].index("STATE")
        assert {row[0] for row in rows[1:]} == set(ids)
        assert {row[state] for row in rows[1:]} == {"ready"}
        assert ("REQS" in rows[0]) == (columns == 140), "columns are left out by rank"
        assert columns == 60 or max(map(len, terminal.lines)) <= columns
        assert "…" not in terminal.read()


async def test_a_dumb_terminal_gets_plain_lines_until_ctrl_c(
    home: Path, server: EmbeddedServer
) -> None:
    async with boxed(server, home):
        await run("scale", "web", 1, "--wait", "-s", server.url, cwd=home)
        async with on_terminal(
            "ps", "--watch", "-s", server.url, cwd=home, TERM="dumb"
        ) as terminal:
            await eventually(lambda: sum("ready" in line for line in terminal.lines) >= 2)
            terminal.press_ctrl_c()
            assert await terminal.wait() == 0
            assert "\x1b" not in terminal.read()


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
async def test_an_old_encoding_gets_the_nearest_text_without_colour(
    encoding: str, home: Path, server: EmbeddedServer
) -> None:
    async with boxed(server, home):
        await run("scale", "web", 1, "--wait", "-s", server.url, cwd=home)
        for verb in (
            ["events", "--no-follow"],
            ["ps"],
            ["timeline", "web"],
            ["plan", "web", "2"],
            ["--help"],
        ):
            link = [] if verb == ["--help"] else ["-s", server.url]
            async with on_terminal(
                *verb, *link, cwd=home, PYTHONIOENCODING=encoding, NO_COLOR="1"
            ) as terminal:
                assert await terminal.wait() == 0, terminal.lines
                assert COLOUR.search(terminal.read()) is None
                if verb[0] == "events":
                    assert any("booting -> ready" in line for line in terminal.lines)


async def test_watch_counts_the_rows_beyond_the_screen(home: Path, server: EmbeddedServer) -> None:
    async with boxed(server, home, service_table("web"), max_instances=8):
        await run("scale", "web", 8, "--wait", "-s", server.url, cwd=home)
        async with on_terminal("ps", "-w", "-s", server.url, cwd=home, rows=5) as terminal:
            await terminal.wait_for("5 more")
            terminal.press_ctrl_c()
            assert await terminal.wait() == 0


async def test_a_closed_terminal_drains_what_up_runs(home: Path) -> None:
    async with on_terminal("up", "--port", 0, cwd=home) as terminal:
        await terminal.wait_for("Next: ")
        line = next(line for line in terminal.lines if line.startswith("NATS server:"))
        url = line.split()[2]
        await run("scale", "web", 1, "--wait", "-s", url, cwd=home)
        instances = home / "data" / "instances"
        [directory] = list(instances.iterdir())
        assert labelled(str(directory))
        terminal.hang_up()
        await eventually(lambda: not labelled(str(directory)), what="the instance has ended")
        await eventually(lambda: terminal.process.returncode is not None, what="`up` has ended")
        assert terminal.process.returncode == 0


async def test_sighup_and_reload_apply_changed_services(home: Path, server: EmbeddedServer) -> None:
    async with running("box", "-s", server.url, cwd=home) as box:
        await box.wait_for("Box box-a is ready")
        more = home / "conf.d" / "api.toml"
        more.parent.mkdir()
        more.write_text(service_table("api"))
        shown = await run("reload", "--dry-run", cwd=home)
        assert (shown.code, shown.out) == (0, "box-a: api: would be added\n")
        box.process.send_signal(signal.SIGHUP)
        await box.wait_for("configuration reloaded: api added")
        more.write_text(service_table("api", env={"LEVEL": "1"}))
        done = await run("reload", cwd=home)
        assert done.code == 0
        assert "box-a: api: changed (env); its instances are replaced" in done.out
        more.write_text("[services.api]\nnope = 1")
        wrong = await run("reload", "--data-dir", home / "data", cwd=home)
        assert wrong.code == 1
        assert "nothing was reloaded" in wrong.err
        assert "unknown key `nope`" in wrong.err
        more.unlink()
        assert "api: removed" in (await run("reload", cwd=home)).out
        box.process.send_signal(signal.SIGTERM)
        assert await box.wait() == 0


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
async def test_a_verb_runs_with_closed_standard_streams(closed: str, home: Path) -> None:
    result = await run_shell(f'"$@" {closed}', "config", "check", cwd=home)
    assert (result.code, "Traceback" in result.err) == (0, False)
    assert ("ok" in result.out) == (">&-" not in closed.replace("2>&-", ""))


async def test_a_full_disk_behind_stdout_is_reported(home: Path) -> None:
    result = await run_shell('"$@" >/dev/full', "config", "check", cwd=home)
    assert result.code == 1
    assert result.err == "box-bridge: stdout cannot be written: No space left on device\n"
