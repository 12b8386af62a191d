"""`status`: one page on a service, or on the fleet: what is wanted, what serves, what is wrong."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from msgspec import Struct, field
from msgspec.structs import replace
from rich.console import Group, RenderableType
from rich.text import Text

from bridge.admin_protocol import Entry, Host, Service
from bridge.cli.flags import Json, Link, OptionalService, Watch
from bridge.cli.output import Output, Style
from bridge.console import instances_table, local_time, one_line, out
from bridge.errors import BusError, NoReply
from bridge.protocol import InstancesResponse, InstanceState, now
from bridge.subjects import check_name

if TYPE_CHECKING:
    from bridge.bus.core.connection import Connection
    from bridge.cli.ended_instances import EndedInstance

_PERIOD: Final = timedelta(hours=24)  # in which failures are listed
_FEW: Final = 5  # failures and decisions that are shown


class StatusResponse(Struct, frozen=True, kw_only=True):
    """The state of the fleet, or of one service. The last failures of a day come newest first, the
    last decisions oldest first. `instances` and `decisions` are those of one service.
    """

    services: list[Service]
    hosts: list[Host]
    failures: list[EndedInstance]
    instances: InstancesResponse | None = None
    decisions: list[Entry] = field(default_factory=list)


async def status(
    service: OptionalService = "",
    /,
    *,
    watch: Watch = False,
    link: Link | None = None,
    json: Json = False,
    output: Output = None,
) -> int:
    """Show what a service lacks and why, on one page.

    The page has the wanted and the serving instances, what is missing and why,
    the last failures of a day, and the last decisions. Without a service it has
    the hosts and all services. For example:

        box-bridge status
        box-bridge status web
    """
    from bridge.cli.watch import View, show

    style = Style.of(output, json=json)
    if service:
        check_name("service", service)
    view = View(
        lambda connection: _query(connection, service),
        lambda seen: _render(seen, service, style),
        lambda seen: _print(seen, service, style),
    )
    return await show(link, "status", view, watch=watch, json=style.for_programs)


async def _query(connection: Connection, service: str) -> StatusResponse:
    from bridge.cli.ended_instances import read_ended
    from bridge.cli.known_names import unknown
    from bridge.gateway.client import ScaleClient
    from bridge.gateway.errors import OrderRefused, ScaleError
    from bridge.gateway.operator import Operator

    operator = Operator(connection)
    services = await operator.services(service)
    if service and not services:
        known = [one.name for one in await operator.services()]
        raise ScaleError(unknown("service", service, known))
    ended: list[EndedInstance] = []
    with contextlib.suppress(NoReply):  # the stream of events is gone; the rest is known
        ended = await read_ended(connection, service, now() - _PERIOD)
    failures = [one for one in ended if one.state is InstanceState.FAILED][:_FEW]
    seen = StatusResponse(services=services, hosts=await operator.hosts(), failures=failures)
    if not service:
        return seen
    instances = await ScaleClient(connection).observe(service)
    with contextlib.suppress(OrderRefused, BusError):  # it was never scaled
        history = await operator.history(service)
        seen = replace(seen, decisions=history.entries[-_FEW:])
    return replace(seen, instances=instances)


def _print(seen: StatusResponse, service: str, style: Style) -> None:
    if not style.print_data(seen, lambda: [one.name for one in seen.services]):
        out.print(_render(seen, service, style))


def _render(seen: StatusResponse, service: str, style: Style) -> Group:
    from bridge.cli.ended_instances import ended_table

    parts: list[RenderableType] = [] if service else [_fleet(seen)]
    parts += [_service(one) for one in seen.services]
    parts += [one_line(line) for one in seen.services for line in _missing(one)]
    parts += [] if service else [one_line(line) for host in seen.hosts for line in _alerts(host)]
    if seen.instances is not None and seen.instances.instances:
        parts += [Text(""), instances_table(seen.instances, wide=style.wide)]
    if seen.failures:
        parts += [_title("Last failures"), ended_table(seen.failures, wide=style.wide)]
    if seen.decisions:
        parts += [_title("Last decisions"), *(_decision(entry) for entry in seen.decisions)]
    return Group(*parts)


def _title(text: str) -> Text:
    return Text(f"\n{text}", style="bold")


def _fleet(seen: StatusResponse) -> Text:
    live = [host for host in seen.hosts if host.live]
    places = sum(host.max_instances for host in live)
    used = sum(host.used for host in live)
    line = Text(f"{len(live)} {'host' if len(live) == 1 else 'hosts'} live")
    if dead := len(seen.hosts) - len(live):
        line.append(f", {dead} dead", style="red")
    if unready := sum(not host.ready for host in live):
        line.append(f", {unready} not ready", style="red")
    return line.append(f"; {used} of {places} places are taken")


def _service(service: Service) -> Text:
    serving = service.ready + service.busy
    enough = serving >= service.wanted
    line = Text(f"{service.name}: {service.wanted} wanted, ")
    line.append(f"{serving} serving", style="green" if enough else "red")
    if service.other:
        line.append(f", {service.other} starting or ending")
    if service.replacing:
        line.append(f", {service.replacing} to be replaced")
    if not service.wanted and service.before_stop:
        line.append(f"; stopped: `box-bridge start {service.name}` restores {service.before_stop}")
    return line


def _missing(service: Service) -> list[Text]:
    stopped = [service.stopped] if service.stopped else []
    return [Text(f"{service.name}: {why}", style="red") for why in stopped + service.missing]


def _alerts(host: Host) -> list[Text]:
    lines = [Text(f"{host.name}: {notice}", style="red") for notice in host.notices]
    if host.order is not None:
        verb = "draining" if host.order.draining else "cordoned"
        why = f": {host.order.reason}" if host.order.reason else ""
        lines.append(Text(f"{host.name}: {verb}{why}", style="yellow"))
    return lines


def _decision(entry: Entry) -> RenderableType:
    at = f"{local_time(entry.at):%Y-%m-%d %H:%M:%S}" if entry.at else "?"
    before = "?" if entry.before is None else entry.before
    by = f" by {entry.host}" if entry.host else ""
    request = f", request {entry.request_id}" if entry.request_id else ""
    note = f": {entry.note}" if entry.note else ""
    line: RenderableType = one_line(Text(f"{at}  {before} → {entry.after}{by}{request}{note}"))
    return line
