"""`stop`: scale services to 0; the fleet remembers how many instances they had."""

from __future__ import annotations

import contextlib
from typing import Annotated

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
from bridge.console import err
from bridge.errors import BusError
from bridge.subjects import check_name


async def stop(
    service: ServiceName,
    /,
    *more: Annotated[str, Parameter(completer=complete_services, help="More services.")],
    wait: WaitForIt = False,
    timeout: RequestTimeout = None,
    link: Link | None = None,
    json: Json = False,
    output: DataOutput = None,
) -> int:
    """Scale services to 0, and remember their counts.

    The instances drain: they finish their requests. The count is kept in the
    record of the service, so that `start` restores it from any machine. A scale
    to 0 does the same. For example:

        box-bridge stop web
        box-bridge stop web api --wait
    """
    from bridge.cli.connect import connect
    from bridge.cli.scaling import ScaleOptions, scale_services
    from bridge.gateway.errors import ScaleError
    from bridge.gateway.operator import Operator

    targets = {check_name("service", name): 0 for name in (service, *more)}
    style = Style.of(output, json=json)
    limit = timeout or (120.0 if wait else 10.0)
    options = ScaleOptions(style=style, wait=wait, limit=limit)
    async with connect(link, "stop") as connection:
        code = await scale_services(connection, targets, options)
        if style.for_programs:
            return code
        for name in targets:
            with contextlib.suppress(BusError, ScaleError):  # a gateway may not ask
                for one in await Operator(connection).services(name, timeout=1.0):
                    if one.before_stop and not one.wanted:
                        err.print(f"`box-bridge start {name}` restores {one.before_stop}")
    return code
