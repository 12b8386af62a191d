"""The connection of a verb that runs no Box."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from bridge.bus.core.connection import Connection
from bridge.cli.flags import Link
from bridge.config import load_nats


@contextlib.asynccontextmanager
async def connect(link: Link | None, verb: str) -> AsyncIterator[Connection]:
    """Connect as the flags and the environment say. Raises ConnectFailed within 2 s."""
    nats = load_nats(flags=(link or Link()).flags())
    async with Connection.open(nats, name=f"box-bridge {verb}") as connection:
        yield connection
