"""`ps`: the fleet's instances, or this host's as its journal has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Group

from bridge.cli.exit_codes import DONE
from bridge.cli.flags import ConfigFile, DataDir, Json, Link, OptionalService, Watch
from bridge.cli.output import Output, Style
from bridge.console import err, instances_table, notices, one_line, out
from bridge.errors import ConfigError, ConnectFailed, CutOff
from bridge.protocol import InstancesResponse
from bridge.subjects import check_name

if TYPE_CHECKING:
    from bridge.bus.core.connection import Connection


async def ps(
    service: OptionalService = "",
    /,
    *,
    watch: Watch = False,
    local: Annotated[
        bool, Parameter(negative="", help="Read the journal of this host, and ask no Box.")
    ] = False,
    config: ConfigFile = None,
    data_dir: DataDir = None,
    link: Link | None = None,
    json: Json = False,
    output: Output = None,
) -> int:
    """List the instances with their state, host and load.

    The oldest come first. For example:

        box-bridge ps
        box-bridge ps web --watch
        box-bridge ps --json | jq -r '.instances[].endpoint'

    If no Box answers and this host has the journal of a Box on that NATS, `ps`
    shows what the journal contains: the instances of this host, since when the
    Box is cut off, and how many events wait to be published. The exit code is 3
    all the same.
    """
    from bridge.cli.known_names import check_services
    from bridge.cli.watch import View, show
    from bridge.gateway.client import ScaleClient
    from bridge.gateway.errors import NoBoxError, RequestTimeout

    style = Style.of(output, json=json)
    if service:
        check_name("service", service)
    if local:
        from bridge.cli.local_journal import show_journal

        if watch:
            raise ConfigError("--local", "looks once: leave --watch out")
        show_journal(service, config, data_dir, style)
        return DONE

    async def query(connection: Connection) -> InstancesResponse:
        seen = await ScaleClient(connection).observe(service)
        if service and not seen.instances:
            await check_services(connection, [service])
        return seen

    view = View(query, lambda seen: _render(seen, style), lambda seen: _print(seen, style))
    try:
        return await show(link, "ps", view, watch=watch, json=style.for_programs)
    except (ConnectFailed, CutOff, NoBoxError, RequestTimeout):
        from bridge.cli.local_journal import show_journal_instead
        from bridge.config import load_nats

        nats = load_nats(flags=(link or Link()).flags())
        show_journal_instead(service, config, data_dir, nats, style)
        raise


def _print(seen: InstancesResponse, style: Style) -> None:
    if style.print_data(seen, lambda: [info.id for info in seen.instances]):
        return
    if seen.instances or seen.notices:
        out.print(_render(seen, style))
    else:
        err.print("no instances")


def _render(seen: InstancesResponse, style: Style) -> Group:
    return Group(instances_table(seen, wide=style.wide), *map(one_line, notices(seen)))
