"""`rebalance`: even out the hosts, and with --wait follow the moves."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from rich.table import Table
from rich.text import Text

from bridge.admin_protocol import AdminResponse, Move
from bridge.cli.exit_codes import DONE, FAILED
from bridge.cli.flags import Json, Link, OptionalService, OrderTimeout
from bridge.console import err, out, plain_table, print_json
from bridge.subjects import check_name


async def rebalance(
    service: OptionalService = "",
    /,
    *,
    dry_run: Annotated[
        bool, Parameter(negative="", help="Show the moves; change nothing.")
    ] = False,
    wait: Annotated[
        bool, Parameter(negative="", help="Return when all instances have moved.")
    ] = False,
    timeout: OrderTimeout = 600.0,
    link: Link | None = None,
    json: Json = False,
) -> int:
    """Even out the hosts with the fewest moves.

    Each instance is replaced before it drains. No instance moves by itself when
    a host joins or returns: this verb moves them. For example:

        box-bridge rebalance --dry-run
        box-bridge rebalance web --wait
    """
    from bridge.cli.connect import connect
    from bridge.cli.known_names import check_services
    from bridge.cli.orders import order_stands
    from bridge.cli.progress import Progress
    from bridge.gateway.operator import Operator

    if service:
        check_name("service", service)
    wait = wait and not dry_run
    async with connect(link, "rebalance") as connection:
        if service and not json:
            await check_services(connection, [service])
        operator = Operator(connection)
        with Progress("asking for moves", quiet=json or not wait) as progress:
            response = await operator.rebalance(service, dry_run=dry_run)
            if wait:
                with order_stands("The moves go on; see `box-bridge history`."):
                    await operator.moved(
                        response.moves,
                        timeout=timeout,
                        progress=lambda done, total: progress.show(f"{done} of {total} moved"),
                    )
    if json:
        print_json(response)
    else:
        _print(response, verb="would move" if dry_run else "moved" if wait else "move")
    return FAILED if response.waiting and not response.moves else DONE


def _print(response: AdminResponse, *, verb: str) -> None:
    if response.moves:
        out.print(_table(response.moves))
        out.print(f"{len(response.moves)} {verb}")
    elif not response.waiting:
        out.print("nothing to move: no host has two places less than another that could take more")
    for service, reason in response.waiting.items():
        err.print(Text(f"{service} was left as it is: {reason}"))
    if response.more:
        err.print("there is more to move: ask again when these moves are made")


def _table(moves: list[Move]) -> Table:
    table = plain_table("ID", "SERVICE", "FROM", "TO")
    for move in moves:
        table.add_row(*map(Text, (move.instance_id, move.service, move.source, move.target)))
    return table
