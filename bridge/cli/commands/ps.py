"""`ps`: the fleet's instances, or this host's as its journal has them."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter
from msgspec import structs
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
    from bridge.cli.ended_instances import EndedInstance

_RECENT: Final = "24h"  # how far back --all looks


async def ps(
    service: OptionalService = "",
    /,
    *,
    all: Annotated[  # noqa: A002
        bool,
        Parameter(
            name=["--all", "-a"],
            negative="",
            help="Also the instances that ended, with the reason, the exit code and the next try.",
        ),
    ] = False,
    since: Annotated[
        str | None, Parameter(help="With --all: how far back, e.g. 2h. Default: 24h.")
    ] = None,
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
        box-bridge ps --all --since 2h
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
    begin = _begin(since, all=all)
    if service:
        check_name("service", service)
    if local:
        from bridge.cli.local_journal import show_journal

        if watch:
            raise ConfigError("--local", "looks once: leave --watch out")
        if all:
            raise ConfigError("--local", "shows what the journal has: leave --all out")
        show_journal(service, config, data_dir, style)
        return DONE

    async def query(connection: Connection) -> InstancesResponse:
        seen = await ScaleClient(connection).observe(service)
        if service and not seen.instances:
            await check_services(connection, [service])
        return await _with_ended(connection, seen, service, begin) if all else seen

    view = View(query, lambda seen: _render(seen, style), lambda seen: _print(seen, style))
    try:
        return await show(link, "ps", view, watch=watch, json=style.for_programs)
    except (ConnectFailed, CutOff, NoBoxError, RequestTimeout):
        from bridge.cli.local_journal import show_journal_instead
        from bridge.config import load_nats

        nats = load_nats(flags=(link or Link()).flags())
        show_journal_instead(service, config, data_dir, nats, style)
        raise


class _AllInstances(InstancesResponse, frozen=True, kw_only=True, gc=False):
    """The instances, and those that ended."""

    ended: list[EndedInstance]


def _begin(since: str | None, *, all: bool) -> datetime | None:  # noqa: A002
    """The time from which on ended instances are listed; None means all that are stored."""
    from bridge.cli.since import parse_log_since

    if since is not None and not all:
        raise ConfigError("--since", "is for the instances that ended: give --all, too")
    return parse_log_since(since or _RECENT)


async def _with_ended(
    connection: Connection, seen: InstancesResponse, service: str, since: datetime | None
) -> _AllInstances:
    from bridge.cli.ended_instances import read_ended

    ended = await read_ended(connection, service, since)
    living = {info.id for info in seen.instances}
    return _AllInstances(
        **structs.asdict(seen), ended=[one for one in ended if one.id not in living]
    )


def _names(seen: InstancesResponse) -> list[str]:
    ended = seen.ended if isinstance(seen, _AllInstances) else []
    return [info.id for info in seen.instances] + [one.id for one in ended]


def _print(seen: InstancesResponse, style: Style) -> None:
    if style.print_data(seen, lambda: _names(seen)):
        return
    if seen.instances or seen.notices or (isinstance(seen, _AllInstances) and seen.ended):
        out.print(_render(seen, style))
    else:
        err.print("no instances")


def _render(seen: InstancesResponse, style: Style) -> Group:
    ended = seen.ended if isinstance(seen, _AllInstances) else []
    tables = [instances_table(seen, wide=style.wide)] if seen.instances or not ended else []
    if ended:
        from bridge.cli.ended_instances import ended_table

        tables += [ended_table(ended, wide=style.wide)]
    return Group(*tables, *map(one_line, notices(seen)))
