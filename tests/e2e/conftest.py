"""A directory to run the command line in, and less patience with servers that do not exist."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from bridge.bus.core.connection import Connection
from bridge.cli import examination
from tests.support import PORTS, TIMING, service_table


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with a box.toml, as a user would have it."""
    box = f'[box]\nname = "box-a"\nmax_instances = 5\nports = "{PORTS}"\n'
    text = f"{box}{TIMING}\n{service_table('web')}"
    (tmp_path / "box.toml").write_text(text)
    return tmp_path


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verb in this process reports an unreachable server after 0.2 s instead of 2 s."""
    defaults = inspect.unwrap(Connection.open.__func__).__kwdefaults__  # type: ignore[attr-defined]
    monkeypatch.setitem(defaults, "patience", 0.2)
    monkeypatch.setattr(examination, "_CONNECT", 0.2)
