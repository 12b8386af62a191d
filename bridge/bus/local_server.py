"""A NATS server on this machine that takes no program but those of its user.

Each start makes a new key. Programs of the user find it by themselves (`bridge.config.local_key`),
and others have none.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from bridge.auth.keys import create_key
from bridge.bus.embedded_server import EmbeddedServer
from bridge.config.local_key import local_key
from bridge.errors import ServerNotStarted


@contextlib.asynccontextmanager
async def local_server(
    directory: Path, *, port: int = 0
) -> AsyncIterator[tuple[EmbeddedServer, Path]]:
    """The running server, and the file with the secret seed of its only user.

    Raises ServerNotStarted, and ConfigError without the extra `nkeys`.
    """
    key = create_key()
    async with EmbeddedServer(directory, port=port, keys=[key.public]) as server:
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(local_key(server.url, key.seed))
            except OSError as exc:
                problem = f"its key cannot be written to {exc.filename}: {exc.strerror}"
                raise ServerNotStarted(problem) from exc
            yield server, file
