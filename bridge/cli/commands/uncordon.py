"""`uncordon`: end a cordon or a drain."""

from __future__ import annotations

from bridge.cli.exit_codes import DONE
from bridge.cli.flags import HostName, Json, Link
from bridge.subjects import check_name


async def uncordon(host: HostName, /, *, link: Link | None = None, json: Json = False) -> int:
    """End a cordon or a drain: the host takes instances again.

    Instances that moved away do not return by themselves; `rebalance` moves
    them. For example:

        box-bridge uncordon box-a
    """
    from bridge.cli.connect import connect
    from bridge.cli.orders import print_done
    from bridge.gateway.operator import Operator

    check_name("host", host)
    async with connect(link, "uncordon") as connection:
        await Operator(connection).uncordon(host)
    print_done(f"{host} takes instances again", json=json)
    return DONE
