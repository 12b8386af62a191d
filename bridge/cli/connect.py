"""The connection of a verb that runs no Box, and why nothing answers on it.

Every verb names the missing part within a second: the server, JetStream, the fleet's streams or a
Box. A verb that waits reports each reason once, and again when it changes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final

from bridge.bus.core.connection import Connection
from bridge.bus.jetstream import topology
from bridge.cli.flags import Link
from bridge.config import load_nats
from bridge.console import err
from bridge.errors import BusError, ConnectFailed, NotPermitted, StoreUnsuitable, without_secret
from bridge.gateway.errors import NoBoxError
from bridge.tasks import task_scope

_UNREACHABLE: Final = 0.4  # seconds for a server at whose address no program listens
_LOOK: Final = 1.0  # seconds for one look at the streams, and between two of them
_SETTLE: Final = 0.4  # seconds until a wait is explained: most end sooner


@contextlib.asynccontextmanager
async def connect(link: Link | None, verb: str, *, wait: bool = False) -> AsyncIterator[Connection]:
    """Connect as the flags and the environment say.

    Raises ConnectFailed within 2 s, or with `wait` only if a server refuses. A NoBoxError of the
    block names the part of the fleet that is missing.
    """
    nats = load_nats(flags=(link or Link()).flags())
    async with Connection.open(
        nats,
        name=f"box-bridge {verb}",
        unreachable=_UNREACHABLE,
        waiting=report_wait if wait else None,
    ) as connection:
        try:
            yield connection
        except NoBoxError as exc:
            problem = None if exc.problem else await find_absence(connection)
            if problem is None:
                raise
            raise NoBoxError(exc.subject, problem=problem) from exc


def report_wait(exc: ConnectFailed) -> None:
    """Print the server that a verb waits for, and the reason."""
    urls = ", ".join(map(without_secret, exc.urls))
    err.print(f"Waiting for NATS at {urls}: {exc.reason}. {exc.cure_sentence}")


async def wait_for_jetstream(connection: Connection) -> None:
    """Return when the server has JetStream."""
    while True:
        if await _find_server_problem(connection) is None:
            return
        await asyncio.sleep(_LOOK)


async def require_streams(connection: Connection) -> None:
    """Raise NoBoxError if the fleet's streams do not exist, because of the server or of no Box."""
    if problem := await find_absence(connection):
        raise NoBoxError(connection.subjects.events_stream, problem=problem)


@contextlib.asynccontextmanager
async def explained_wait(connection: Connection) -> AsyncIterator[Callable[[], bool]]:
    """Print why nothing comes until the block calls the result, once for each reason."""
    async with task_scope() as tasks:
        explaining = tasks.create_task(_explain(connection), name="explain-wait")
        try:
            yield explaining.cancel
        finally:
            explaining.cancel()


async def _explain(connection: Connection) -> None:
    await asyncio.sleep(_SETTLE)
    last = ""
    while True:
        problem = await find_absence(connection)
        if problem and problem != last:
            err.print(f"Waiting: {problem}")
        last = problem or last
        await asyncio.sleep(_LOOK)


async def find_absence(connection: Connection) -> str | None:
    """The part without which no Box can answer; None if all is there, or it cannot be known."""
    if problem := await _find_server_problem(connection):
        return problem
    url, prefix = _shown(connection), connection.subjects.prefix
    try:
        async with asyncio.timeout(_LOOK):
            found = await topology.stream_info(connection, connection.subjects.events_stream)
    except (BusError, TimeoutError):
        return None
    if found is not None:
        return None
    return (
        f"no Box has run on NATS at {url} with prefix {prefix} yet: start one with "
        f"`box-bridge box -s {url}`, or check the URL and the prefix"
    )


async def _find_server_problem(connection: Connection) -> str | None:
    """Why the server cannot keep a fleet; None if it can, or if that cannot be known."""
    url = _shown(connection)
    if not connection.connected:
        return f"the connection to NATS at {url} is lost; the client reconnects by itself"
    if connection.server_info.get("jetstream") or connection.settings.domain:
        return None
    try:
        async with asyncio.timeout(_LOOK):
            await topology.api_level(connection)
    except StoreUnsuitable as exc:
        return None if isinstance(exc.__cause__, NotPermitted) else f"NATS at {url}: {exc}"
    except TimeoutError:
        return f"JetStream of NATS at {url} does not answer: see `nats server report jetstream`"
    except BusError:
        return None
    return None


def _shown(connection: Connection) -> str:
    return ", ".join(map(without_secret, connection.settings.urls))
