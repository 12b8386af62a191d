"""A place to run the command line in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import PORTS, TIMING, service_table


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with a box.toml, as a user would have it."""
    box = f'[box]\nname = "box-a"\nmax_instances = 5\nports = "{PORTS}"\n'
    text = f"{box}{TIMING}\n{service_table('web')}"
    (tmp_path / "box.toml").write_text(text)
    return tmp_path
