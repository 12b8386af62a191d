"""Secrets: an instance gets them, and nothing else has them. No verb shows a request's values."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from bridge.box.daemon import Box
from bridge.box.runtimes.process.programs import launch_problems
from bridge.bus.embedded_server import EmbeddedServer
from bridge.config import load
from bridge.errors import ConfigError
from tests.boxes import serving
from tests.e2e.program import run
from tests.paths import HTTP_SERVICE
from tests.support import ask, box_config, connect, eventually, service_table

OF_FILE, OF_SYSTEMD, OF_REQUEST = "value-of-the-file", "value-of-systemd", "value-of-the-request"
VARIABLES = ("TOKEN", "KEY", "LEVEL")


def table(tmp_path: Path) -> str:
    """A service `web` that writes its variables to a file, and then serves."""
    seen = " ".join(f"${name}" for name in VARIABLES)
    script = f'echo "{seen}" >> {tmp_path}/seen; exec {sys.executable} -S {HTTP_SERVICE} "$PORT"'
    return service_table(
        "web",
        command=["sh", "-c", script],
        env={"TOKEN": {"file": "token"}, "KEY": {"credential": "key"}},
        request_env=["LEVEL"],
    )


def holds(directory: Path, text: str) -> list[Path]:
    """The files in `directory` that contain `text`."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return [path for path in files if text.encode() in path.read_bytes()]


async def test_a_secret_reaches_the_instance_at_each_start_and_nothing_else(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "key").write_text(f"{OF_SYSTEMD}\n")
    (tmp_path / "token").write_text(f"{OF_FILE}\n")
    config = box_config(tmp_path, server.url, table(tmp_path), more='labels = { zone = "a" }')
    config = replace(config, credentials=str(tmp_path / "credentials"))
    assert not list(launch_problems(config))
    async with connect(server.url) as gateway, Box.running(config):
        await ask(gateway, "web", 1, config={"env": {"LEVEL": OF_REQUEST}})
        [first] = await serving(gateway, "web", 1)
        (tmp_path / "token").write_text("another-value")
        await ask(gateway, "web", 2)
        await serving(gateway, "web", 2)
        assert (tmp_path / "seen").read_text().splitlines() == [
            f"{OF_FILE} {OF_SYSTEMD} {OF_REQUEST}",
            f"another-value {OF_SYSTEMD} {OF_REQUEST}",
        ]
        for verb in (
            *(["ps"], ["services"], ["hosts"], ["history", "web"], ["events", "--since", "all"]),
            *(["plan", "web", "3"], ["timeline", "web"], ["routes"], ["status", "web"]),
        ):
            follow = ["--no-follow"] if verb[0] == "events" else []
            for form in ([], ["--json"]):
                shown = await run(*verb, *follow, *form, "-s", server.url, cwd=tmp_path)
                assert first.id in shown.out or shown.code == 0, verb
                assert "value-of" not in shown.out + shown.err, verb
        checked = await run(
            "config", "check", "--json", "-c", tmp_path / "box-a.toml", cwd=tmp_path
        )
        assert (checked.code, "value" in checked.out) == (0, False)
        assert str(tmp_path / "token") in checked.out
    for secret in (OF_FILE, OF_SYSTEMD, "another-value"):
        assert not holds(tmp_path / "data-box-a", secret)
        assert not holds(server.directory, secret)
    assert holds(server.directory, OF_REQUEST), "the records have what requests set"


async def test_a_secret_that_is_not_there_is_named_and_tried_again(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "key").touch()
    config = box_config(tmp_path, server.url, table(tmp_path))
    config = replace(config, credentials=str(tmp_path / "credentials"))
    [(place, problem)] = launch_problems(config)
    assert place == "[services.web]"
    assert problem == f"env.TOKEN: {tmp_path}/token is not there, or not readable"
    async with connect(server.url) as gateway, Box.running(config):
        await ask(gateway, "web", 1)

        async def failure() -> bool:
            shown = await run("ps", "--all", "-s", server.url, cwd=tmp_path)
            return "token cannot be read: No such file" in shown.out

        await eventually(failure)
        (tmp_path / "token").write_text(OF_FILE)
        await serving(gateway, "web", 1)


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ("{ A = {} }", 'a secret is { file = "…" } or { credential = "…" }'),
        ('{ A = { file = "a", credential = "a" } }', 'a secret is { file = "…" }'),
        ('{ A = { credential = "../a" } }', "must be a name, without a path"),
        ('{ A = { fil = "a" } }', "unknown key `fil`; did you mean `file`?"),
        ('{ A = { file = "a" }, B = 3 }', '`env.B` must be text: `B = "3"`'),
    ],
)
def test_a_wrong_secret_is_explained(tmp_path: Path, env: str, expected: str) -> None:
    file = tmp_path / "box.toml"
    file.write_text(f'[services.web]\ncommand = ["web"]\nenv = {env}\n')
    with pytest.raises(ConfigError) as caught:
        load(file, environ={})
    assert expected in str(caught.value)
