"""`restart`: replace the instances of a service, or one instance, by new ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from bridge.admin_protocol import AdminResponse
from bridge.cli.completion import INSTANCES, SERVICES, completer
from bridge.cli.exit_codes import DONE
from bridge.cli.flags import Json, Link, OrderTimeout
from bridge.cli.output import DataOutput, Style
from bridge.console import out
from bridge.subjects import check_name

if TYPE_CHECKING:
    from bridge.bus.core.connection import Connection


async def restart(
    name: Annotated[
        str,
        Parameter(
            name="SERVICE",
            completer=completer(INSTANCES, SERVICES),
            help="The service, or one instance, as `ps` names it.",
        ),
    ],
    /,
    *,
    wait: Annotated[
        bool, Parameter(negative="", help="Return when all instances are replaced.")
    ] = False,
    timeout: OrderTimeout = 600.0,
    link: Link | None = None,
    json: Json = False,
    output: DataOutput = None,
) -> int:
    """Replace the instances of a service, or one instance.

    A new instance is Ready before an old one drains, `max_surge` at a time; where
    there is no room for both, the old one drains first. Three failures in a row
    stop the restart, and the remaining instances stay. For example:

        box-bridge restart web --wait
        box-bridge restart web-01jz3k
    """
    from bridge.cli.connect import connect
    from bridge.cli.orders import order_stands
    from bridge.cli.progress import Progress
    from bridge.gateway.operator import Operator

    style = Style.of(output, json=json)
    check_name("service", name)
    async with connect(link, "restart") as connection:
        service, instance_id = await _target(connection, name)
        quiet = style.for_programs or not wait
        with (
            Progress(f"{name}: asking", quiet=quiet) as progress,
            order_stands(f"The restart goes on if a Box has accepted it: see `history {service}`."),
        ):
            count = await Operator(connection).restart(
                service,
                instance_id,
                wait=wait,
                timeout=timeout,
                progress=lambda done, total: progress.show(f"{name}: {done} of {total} replaced"),
            )
    if not style.print_data(AdminResponse(done=True, affected=count)):
        instances = "1 instance" if count == 1 else f"{count} instances"
        out.print(f"{instances} of {service} {'replaced' if wait else 'to be replaced'}")
    return DONE


async def _target(connection: Connection, name: str) -> tuple[str, str]:
    """The service and the instance that `name` means; "" for all. Raises ScaleError."""
    from bridge.cli.known_names import unknown
    from bridge.gateway.client import ScaleClient
    from bridge.gateway.errors import ScaleError
    from bridge.gateway.operator import Operator

    operator = Operator(connection)
    if await operator.services(name):
        return name, ""
    service = name.rpartition("-")[0]
    if service and await operator.services(service):
        ids = [info.id for info in (await ScaleClient(connection).observe(service)).instances]
        if name in ids:
            return service, name
        raise ScaleError(unknown("instance", name, ids))
    raise ScaleError(unknown("service", name, [one.name for one in await operator.services()]))
