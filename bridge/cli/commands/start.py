"""`start`: give stopped services the number of instances that they had."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from bridge.cli.flags import (
    Json,
    Link,
    RequestTimeout,
    ServiceName,
    WaitForIt,
    complete_services,
)
from bridge.cli.output import DataOutput, Style
from bridge.subjects import check_name

if TYPE_CHECKING:
    from bridge.bus.core.connection import Connection


async def start(
    service: ServiceName,
    /,
    *more: Annotated[str, Parameter(completer=complete_services, help="More services.")],
    wait: WaitForIt = False,
    timeout: RequestTimeout = None,
    link: Link | None = None,
    json: Json = False,
    output: DataOutput = None,
) -> int:
    """Start stopped services with the count that they had.

    It is the count before the service was scaled to 0. A service that is not
    stopped keeps its count. The exit codes are those of `scale`. For example:

        box-bridge start web --wait
    """
    from bridge.cli.connect import connect
    from bridge.cli.scaling import ScaleOptions, scale_services

    names = [check_name("service", name) for name in (service, *more)]
    limit = timeout or (120.0 if wait else 10.0)
    options = ScaleOptions(style=Style.of(output, json=json), wait=wait, limit=limit)
    async with connect(link, "start") as connection:
        targets = {name: await _remembered(connection, name) for name in names}
        return await scale_services(connection, targets, options)


async def _remembered(connection: Connection, service: str) -> int:
    """The number of instances to start. Raises ScaleError if the fleet remembers no number."""
    from bridge.cli.known_names import unknown
    from bridge.gateway.errors import ScaleError
    from bridge.gateway.operator import Operator

    operator = Operator(connection)
    for one in await operator.services(service):
        if count := one.wanted or one.before_stop:
            return count
        raise ScaleError(
            f"no count of {service} is remembered: give one with `box-bridge scale {service} 1`"
        )
    known = [one.name for one in await operator.services()]
    raise ScaleError(unknown("service", service, known))
