"""`version`: ours, and of what it runs on."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

from msgspec import Struct

from bridge.bus.embedded_server import find_binary
from bridge.cli.exit_codes import DONE
from bridge.console import out, print_json
from bridge.errors import ConfigError
from bridge.version import VERSION


class _Versions(Struct, rename="kebab"):
    box_bridge: str
    python: str
    nats_py: str
    nats_server: str | None


def run_version(*, json: bool) -> int:
    """Print the versions."""
    found = _Versions(VERSION, platform.python_version(), _installed("nats-py"), _server())
    if json:
        print_json(found)
    else:
        out.print(f"box-bridge {found.box_bridge}")
        out.print(f"python {found.python}, nats-py {found.nats_py}, ", end="")
        out.print(f"nats-server {found.nats_server or 'not installed'}")
    return DONE


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _server() -> str | None:
    try:
        told = subprocess.run(
            [find_binary(), "--version"], capture_output=True, text=True, check=True
        )
    except (ConfigError, OSError, subprocess.CalledProcessError):
        return None
    return told.stdout.strip().rpartition("v")[2]
