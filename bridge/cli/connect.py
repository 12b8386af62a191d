"""The connection of a verb that needs no Box of its own."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from bridge.bus.core.connection import Connection
from bridge.config import find_file, load, load_nats
from bridge.errors import ConfigError
from bridge.settings import Config


@contextlib.asynccontextmanager
async def connected(flags: Mapping[str, Any], verb: str) -> AsyncIterator[Connection]:
    """Connect as the flags and the environment say, or raise ConnectFailed within 2 s."""
    async with Connection.open(load_nats(flags=flags), name=f"box-bridge {verb}") as connection:
        yield connection


def configuration(
    file: Path | None, box: Mapping[str, Any], nats: Mapping[str, Any] | None = None
) -> Config:
    """The configuration of a Box, from `file` or where it is looked for without one."""
    return load(find_file(file), flags={"box": box, "nats": nats or {}})


def require_services(config: Config) -> Config:
    """`config`, if it has something to run; raises ConfigError if not."""
    if not (config.services or config.box.allow_images):
        raise ConfigError(
            "[services]",
            "no service is configured: give -c box.toml with\n"
            "  [services.web]\n"
            '  command = ["python3", "-m", "http.server", "{port}"]',
        )
    return config
