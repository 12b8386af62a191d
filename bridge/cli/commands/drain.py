"""`drain`: empty a host, and follow it until it is empty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from cyclopts import Parameter

from bridge.admin_protocol import AdminResponse, Host
from bridge.cli.exit_codes import DONE
from bridge.cli.flags import HostName, Json, Link, OrderTimeout, Reason
from bridge.console import out, print_json
from bridge.subjects import check_name


async def drain(
    host: HostName,
    /,
    *,
    timeout: OrderTimeout = 600.0,
    force: Annotated[
        bool,
        Parameter(negative="", help="Also end instances for which no other host has room."),
    ] = False,
    reason: Reason = "",
    wait: Annotated[
        bool,
        Parameter(name="--wait", negative="--no-wait", help="Return when the host is empty."),
    ] = True,
    link: Link | None = None,
    json: Json = False,
) -> int:
    """Empty a host: replace each instance elsewhere first.

    An instance drains after its replacement is Ready. The order is refused if the
    other hosts have no room. The host stays cordoned until `uncordon`. Ctrl-C or
    a timeout leaves the order in effect; draining again follows it further.
    For example, before maintenance:

        box-bridge drain box-a --reason "new kernel" && ssh box-a reboot
        box-bridge uncordon box-a
    """
    from bridge.cli.connect import connect
    from bridge.cli.orders import order_stands
    from bridge.cli.progress import Progress
    from bridge.gateway.operator import Operator

    check_name("host", host)
    cure = f"`box-bridge uncordon {host}` ends it"
    short: Mapping[str, int] = {}
    async with connect(link, "drain") as connection:
        operator = Operator(connection)
        with Progress(f"{host}: asking for its drain", quiet=json or not wait) as progress:

            def show(gone: int, total: int, seen: Host) -> None:
                nonlocal short
                short = seen.short
                room = f"; no host has room for {_list(short)}" if short else ""
                progress.show(f"{host}: {gone} of {total} gone from it{room}")

            count = await operator.drain(host, force=force, reason=reason, wait=False)
            if wait:
                with order_stands(f"The drain of {host} goes on; {cure}."):
                    await operator.emptied(host, of=count, timeout=timeout, progress=show)
    if json:
        waiting = {service: f"no host has room for {number}" for service, number in short.items()}
        print_json(AdminResponse(done=True, affected=count, waiting=waiting))
    elif wait:
        room = f", and no host has room for {_list(short)}" if short else ""
        out.print(f"{host} is empty: {count} gone from it{room}; {cure}")
    else:
        out.print(f"{host} is being drained: {count} to go from it; see `box-bridge hosts`")
    return DONE


def _list(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} of {service}" for service, count in sorted(counts.items()))
