"""The versions that `box-bridge version` prints. It imports little: see `bridge.cli`."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

from bridge.bus.server_binary import find_binary
from bridge.cli.exit_codes import DONE
from bridge.errors import ConfigError
from bridge.version import VERSION


def print_versions(*, json: bool) -> int:
    """Print the versions of this package, Python, nats-py and the nats-server that `up` runs."""
    python = sys.version.split()[0]
    client, server = _installed("nats-py"), _server()
    if json:
        from json import dumps

        versions = {
            "box-bridge": VERSION,
            "python": python,
            "nats-py": client,
            "nats-server": server,
        }
        print(dumps(versions, separators=(",", ":")), flush=True)
    else:
        print(f"box-bridge {VERSION}")
        server = server or "not installed"
        print(f"python {python}, nats-py {client}, nats-server {server}", flush=True)
    return DONE


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _server() -> str | None:
    """The version of the nats-server that `up` would run, None if none runs here."""
    try:
        done = subprocess.run(
            [find_binary(), "--version"], capture_output=True, text=True, check=True
        )
    except (ConfigError, OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip().rpartition("v")[2]
