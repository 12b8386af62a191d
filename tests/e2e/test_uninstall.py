"""`uninstall` deletes what box-bridge has made, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.box.daemon import Box
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.cli import uninstallation
from tests.boxes import serving
from tests.e2e.program import run
from tests.e2e.pseudo_terminal import on_terminal
from tests.support import ask, box_config, connect


@pytest.fixture(autouse=True)
def units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "units"
    directory.mkdir()
    (directory / "box-bridge.service").touch()
    (directory / "other.service").touch()
    monkeypatch.setattr(uninstallation, "UNITS", directory)
    monkeypatch.setenv("PATH", str(directory))  # no systemctl of this machine
    return directory


async def streams(url: str) -> list[str]:
    async with connect(url) as connection:
        named = [str(config.name) for config in topology.streams(connection.subjects)]
        return [name for name in named if await topology.stream_info(connection, name)]


async def test_it_says_what_it_would_delete_and_deletes_that_alone(
    server: EmbeddedServer, tmp_path: Path, units: Path
) -> None:
    config = box_config(tmp_path, server.url)
    command = ("uninstall", "-c", tmp_path / "box-a.toml")
    env = {"PATH": str(units)}
    async with connect(server.url) as gateway, Box.running(config):
        await ask(gateway, "web", 1)
        await serving(gateway, "web", 1)
        refused = await run(*command, "--yes", cwd=tmp_path, **env)
        assert (refused.code, "stop it first" in refused.err) == (1, True)
    (config.data_dir / "notes").touch()
    async with Box.running(box_config(tmp_path, server.url, name="box-b")):
        shown = await run(*command, cwd=tmp_path, **env)
        assert shown.code == 2
        assert "the streams of NATS stay: box-b still uses them" in shown.out
        assert "nothing was deleted: give --yes" in shown.err
    assert len(await streams(server.url)) == 6
    done = await run(*command, "--yes", cwd=tmp_path, **env)
    assert done.code == 0
    assert "would delete: stream BOX_EVENTS with" in done.out
    assert f"{config.data_dir} stays: it has other files (notes)" in done.out
    assert await streams(server.url) == []
    assert [path.name for path in config.data_dir.iterdir()] == ["notes"]
    assert [path.name for path in units.iterdir()] == ["other.service"]
    assert (tmp_path / "box-a.toml").exists()
    again = await run(*command, cwd=tmp_path, **env)
    assert (again.code, "there is nothing to delete" in again.out) == (0, True)


@pytest.mark.slow
async def test_without_nats_the_files_of_the_host_are_deleted_after_a_yes(tmp_path: Path) -> None:
    config = box_config(tmp_path, "nats://127.0.0.1:1")
    config.data_dir.mkdir()
    (config.data_dir / "host-id").write_text("id")
    for answer, left in (("n", True), ("y", False)):
        async with on_terminal("uninstall", "-c", "box-a.toml", cwd=tmp_path) as terminal:
            await terminal.wait_for("Delete all of this?")
            assert any("the streams of NATS stay: " in line for line in terminal.lines)
            terminal.type(f"{answer}\r")
            assert await terminal.wait() == (1 if left else 0)
        assert config.data_dir.exists() == left
