"""A process that refreshes the cache of the names that shells complete (`bridge.cli.completion`).

It is silent, whatever happens. Without an answer it stores no names, so that the next TAB does not
wait for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Final

from bridge.bus.core.connection import Connection
from bridge.cli.completion import HOSTS, INSTANCES, SERVICES, cache_file
from bridge.config import load_nats
from bridge.errors import BridgeError
from bridge.gateway.client import ScaleClient
from bridge.gateway.operator import Operator
from bridge.private_files import make_private_directory

_TIMEOUT: Final = 1.0  # seconds for each answer, and to find that no server is there
_FLAGS: Final = {"-s": "url", "--server": "url", "--context": "context", "--prefix": "prefix"}


async def refresh(link: Sequence[str]) -> None:
    """Ask for the names, and store them."""
    names: dict[str, list[str]] = {SERVICES: [], HOSTS: [], INSTANCES: []}
    with contextlib.suppress(BridgeError):
        settings = load_nats(flags=_flags(link))
        async with Connection.open(
            settings, name="box-bridge completion", unreachable=_TIMEOUT / 10, patience=_TIMEOUT
        ) as connection:
            operator = Operator(connection)
            with contextlib.suppress(BridgeError):
                seen = await ScaleClient(connection).observe(timeout=_TIMEOUT)
                names[INSTANCES] = [item.id for item in seen.instances]
                names[SERVICES] = sorted({item.service for item in seen.instances})
            with contextlib.suppress(BridgeError):  # a gateway has no permission for the others
                names[SERVICES] = [one.name for one in await operator.services(timeout=_TIMEOUT)]
                names[HOSTS] = [one.name for one in await operator.hosts(timeout=_TIMEOUT)]
    for kind, listed in names.items():
        file = cache_file(link, kind)
        make_private_directory(file.parent)
        part = file.with_name(f"{file.name}.{os.getpid()}")
        part.write_text("\n".join(listed))
        part.replace(file)  # a reader never sees a part of the names


def _flags(link: Sequence[str]) -> dict[str, str]:
    flags, words = {}, iter(link)
    for word in words:
        flag, equals, value = word.partition("=")
        flags[_FLAGS[flag]] = value if equals else next(words)
    return flags


if __name__ == "__main__":
    with contextlib.suppress(OSError):  # a cache that cannot be written
        asyncio.run(refresh(sys.argv[1:]))
