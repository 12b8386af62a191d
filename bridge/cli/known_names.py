"""Names that do not exist: one sentence for each verb, with the names that do."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Final

from bridge.bus.core.connection import Connection
from bridge.bus.jetstream import replay
from bridge.errors import BusError
from bridge.gateway.errors import OrderRefused, ScaleError, ScaleRefused
from bridge.gateway.operator import Operator
from bridge.reply_codes import ReplyCode

_TIMEOUT: Final = 1.0  # seconds; without an answer a name counts as known
_LISTED: Final = 20  # names in one sentence


async def check_services(connection: Connection, services: Iterable[str]) -> None:
    """Raise ScaleError for a service that no Box knows and that has no stored events.

    It raises nothing if no Box answers, or if this user may not ask.
    """
    problem = None
    with contextlib.suppress(BusError, ScaleError):
        problem = await _find_unknown(connection, services)
    if problem is not None:
        raise ScaleError(problem)


async def _find_unknown(connection: Connection, services: Iterable[str]) -> str | None:
    operator = Operator(connection)
    for service in services:
        if await _has_events(connection, service):  # a gateway may ask for that, not for services
            continue
        if not await operator.services(service, timeout=_TIMEOUT):
            listed = [one.name for one in await operator.services(timeout=_TIMEOUT)]
            return unknown("service", service, listed)
    return None


@contextlib.asynccontextmanager
async def service_names(
    connection: Connection, service: str, *, as_refused: bool
) -> AsyncIterator[None]:
    """Where a Box does not know `service`, the block raises ScaleError with the known names, or
    `as_refused` the refusal of the Box.
    """
    try:
        yield
    except (ScaleRefused, OrderRefused) as exc:
        if exc.code == ReplyCode.UNKNOWN_SERVICE and not as_refused:
            await check_services(connection, [service])
        raise


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The sentence about a `kind` of thing called `name` that does not exist."""
    names = sorted(set(known))
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"no {kind} {name}; known: {', '.join(names[:_LISTED]) or 'none yet'}{more}"


async def _has_events(connection: Connection, service: str) -> bool:
    subjects = connection.subjects
    return await replay.holds(connection, subjects.events_stream, subjects.events(service))
