"""`cordon`: place nothing new on a host."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from bridge.cli.exit_codes import DONE
from bridge.cli.flags import HostName, Json, Link, Reason
from bridge.subjects import check_name


async def cordon(
    host: HostName,
    /,
    *,
    force: Annotated[
        bool, Parameter(negative="", help="Also a host that the fleet does not know, or not yet.")
    ] = False,
    reason: Reason = "",
    link: Link | None = None,
    json: Json = False,
) -> int:
    """Place nothing new on a host; what it runs stays.

    The order lasts until `uncordon`, also over restarts of the Box. For example:

        box-bridge cordon box-a --reason "disk is failing"
    """
    from bridge.cli.connect import connect
    from bridge.cli.orders import print_done
    from bridge.gateway.operator import Operator

    check_name("host", host)
    async with connect(link, "cordon") as connection:
        await Operator(connection).cordon(host, reason=reason, force=force)
    text = f"{host} is cordoned: nothing is placed there until `box-bridge uncordon {host}`"
    print_done(text, json=json)
    return DONE
