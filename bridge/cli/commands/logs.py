"""`logs`: what instances have written, on any host of the fleet."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter
from cyclopts.validators import Number
from msgspec import Struct
from rich.text import Text

from bridge.cli.completion import INSTANCES, SERVICES, completer
from bridge.cli.exit_codes import DONE
from bridge.cli.flags import ConfigFile, DataDir, Json, Link
from bridge.cli.output import DataOutput, Style
from bridge.console import err, local_time, out
from bridge.errors import BridgeError, ConfigError, ConnectFailed, CutOff, InstanceError
from bridge.printable import printable
from bridge.protocol import Time
from bridge.subjects import check_name

if TYPE_CHECKING:
    from bridge.cli.logs.hosts import Found
    from bridge.cli.logs.source import Line, Source
    from bridge.log_protocol import Stream

_COLOURS: Final = ("cyan", "yellow", "green", "magenta", "blue", "bright_cyan", "bright_yellow")


class _Line(Struct):
    instance_id: str
    stream: str
    at: Time
    line: str


class _Query(Struct, frozen=True, kw_only=True):
    """What is shown; `name` is an instance or a service."""

    name: str
    follow: bool
    streams: tuple[Stream, ...]
    tail: int | None
    since: datetime | None
    until: datetime | None


async def logs(
    name: Annotated[
        str,
        Parameter(
            name="ID",
            completer=completer(INSTANCES, SERVICES),
            help="The instance, as `ps` or an event names it, or a service.",
        ),
    ],
    /,
    *,
    follow: Annotated[
        bool,
        Parameter(
            name=["--follow", "-f"],
            negative="",
            help="Continue until the instance ends; for a service, until Ctrl-C.",
        ),
    ] = False,
    tail: Annotated[
        int | None,
        Parameter(
            name=["--tail", "-n"],
            validator=Number(gte=0, lte=1_000_000),
            help="Begin with the last lines of each instance. Default: all that are kept.",
        ),
    ] = None,
    since: Annotated[
        str | None, Parameter(help="Only lines from then on: 10m, 1h30m, 14:00, or a time.")
    ] = None,
    until: Annotated[str | None, Parameter(help="Only lines up to then, as for --since.")] = None,
    stdout: Annotated[bool, Parameter(negative="", help="Only stdout.")] = False,
    stderr: Annotated[bool, Parameter(negative="", help="Only stderr.")] = False,
    timestamps: Annotated[
        bool,
        Parameter(name=["--timestamps", "-t"], negative="", help="Begin each line with its time."),
    ] = False,
    local: Annotated[
        bool, Parameter(negative="", help="Read the files of this host, and ask no Box.")
    ] = False,
    config: ConfigFile = None,
    data_dir: DataDir = None,
    link: Link | None = None,
    json: Json = False,
    output: DataOutput = None,
) -> int:
    """Show what instances have written to stdout and stderr.

    It works from any machine: the Boxes send the logs of their instances, also of
    those that ended and are kept. The lines of several instances are in the order
    of their times, each with its instance. Times are exact to half a second, or
    as a container engine has them. A terminal gets no control characters, a pipe
    gets each line as it was written. --local, or a --data-dir, reads the files of
    this host instead. For example:

        box-bridge logs web-01jz3k --follow
        box-bridge logs web --tail 20 --timestamps
        box-bridge logs web --since 14:00 --stderr
    """
    import asyncio

    from bridge.cli.since import parse_log_since, parse_until

    query = _Query(
        name=check_name("instance id", name),
        follow=follow and until is None,
        streams=_streams(stdout=stdout, stderr=stderr),
        tail=tail,
        since=None if since is None else parse_log_since(since),
        until=None if until is None else parse_until(until),
    )
    if follow and until is not None:
        raise ConfigError("--follow", "goes on until the end: leave --until out")
    printer = _Printer(Style.of(output, json=json), timestamps=timestamps)
    with contextlib.suppress(asyncio.CancelledError):  # Ctrl-C
        if local or data_dir:
            await _print_local(query, config, data_dir, printer)
        else:
            await _print_remote(query, config, link, printer)
    return DONE


def _streams(*, stdout: bool, stderr: bool) -> tuple[Stream, ...]:
    if stdout == stderr:
        return ("stdout", "stderr")
    return ("stdout",) if stdout else ("stderr",)


async def _print_remote(
    query: _Query, config: Path | None, link: Link | None, printer: _Printer
) -> None:
    """Print the lines from all hosts; where no Box answers, those that this host has."""
    from bridge.cli.connect import connect
    from bridge.cli.logs.hosts import find_on_hosts, missing
    from bridge.gateway.errors import NoBoxError, RequestTimeout

    try:
        async with connect(link, "logs") as connection:
            found, silent = await find_on_hosts(connection, query.name)
            if not found:
                raise await missing(connection, query.name, silent)
            for host in silent:
                err.print(Text(f"no answer from {host}: the logs there are missing"))

            async def discover() -> Found:
                return (await find_on_hosts(connection, query.name))[0]

            await _print(query, found, printer, discover)
    except (ConnectFailed, CutOff, NoBoxError, RequestTimeout) as exc:
        if printer.count:
            raise
        try:
            await _print_local(query, config, None, printer, instead_of=exc)
        except (ConfigError, InstanceError) as problem:
            raise exc from problem


async def _print_local(
    query: _Query,
    config: Path | None,
    data_dir: Path | None,
    printer: _Printer,
    instead_of: BridgeError | None = None,
) -> None:
    """Print the lines in the files of this host. Raises InstanceError if there is none."""
    from bridge.box.runtimes.logs import instances_dir
    from bridge.cli.box_config import load_config
    from bridge.cli.logs.hosts import LocalLogs

    root = instances_dir(data_dir or load_config(config, {}).data_dir)
    found = LocalLogs(root).find(query.name)
    if not found:
        raise InstanceError(f"no logs of {query.name} in {root}")
    if instead_of is not None:
        err.print(Text(f"{instead_of}. These are the logs in {root}:"))
    await _print(query, found, printer, None)


async def _print(
    query: _Query, found: Found, printer: _Printer, discover: Callable[[], Awaitable[Found]] | None
) -> None:
    from bridge.cli.logs.merge import Merge

    known = set(found)
    printer.name_instances(known, single=query.name in found)

    async def find_new() -> Iterable[Source]:
        assert discover is not None
        fresh = {one: item for one, item in (await discover()).items() if one not in known}
        known.update(fresh)
        printer.name_instances(known, single=False)
        return _sources(fresh, query, first=False)

    merge = Merge(
        _sources(found, query, first=True),
        follow=query.follow,
        discover=find_new if discover is not None and query.name not in found else None,
        on_trouble=_Troubles().report,
        tail=query.tail,
        since=_nanoseconds(query.since) or 0,
        until=_nanoseconds(query.until),
    )
    async for line in merge.lines():
        printer.print(line)


def _sources(found: Found, query: _Query, *, first: bool) -> Iterable[Source]:
    """The sources of these instances; only the `first` ones begin with their last lines."""
    from bridge.cli.logs.source import Source

    return [
        Source(instance_id, stream, ask, tail=query.tail if first else None, since=query.since)
        for instance_id, (_, ask) in found.items()
        for stream in query.streams
    ]


def _nanoseconds(at: datetime | None) -> int | None:
    return None if at is None else int(at.timestamp() * 1_000_000) * 1000


class _Troubles:
    """Prints each reason once for which a host does not answer while its logs are followed."""

    def __init__(self) -> None:
        self._last = ""

    def report(self, exc: BridgeError) -> None:
        if str(exc) != self._last:
            self._last = str(exc)
            err.print(Text(f"waiting: {exc}"))


class _Printer:
    """Prints lines; those of several instances with their instance, in its colour."""

    def __init__(self, style: Style, *, timestamps: bool) -> None:
        self.count = 0
        self._style = style
        self._timestamps = timestamps
        self._names: dict[str, str] = {}
        self._width = 0
        self._single = True
        self._plain = out.color_system is None

    def name_instances(self, ids: Iterable[str], *, single: bool) -> None:
        """Give each instance a colour; a `single` one needs no name."""
        self._single = single
        for instance_id in sorted(ids):
            colour = _COLOURS[len(self._names) % len(_COLOURS)]
            self._names.setdefault(instance_id, colour)
            self._width = max(self._width, len(instance_id))

    def print(self, line: Line) -> None:
        """Print one line. A terminal gets no control characters."""
        self.count += 1
        at = datetime.fromtimestamp(line.at / 10**9, UTC)
        text = line.data.decode(errors="replace")
        shown = _Line(instance_id=line.instance_id, stream=line.stream, at=at, line=text)
        if self._style.print_data(shown):
            return
        begin = f"{local_time(at):%Y-%m-%d %H:%M:%S.%f}"[:-3] + "  " if self._timestamps else ""
        name = "" if self._single else f"{line.instance_id:<{self._width}}  "
        if sys.stdout.isatty():
            text = printable(text.removesuffix("\r").expandtabs())
        if self._plain or not name:
            sys.stdout.write(f"{begin}{name}{text}\n")
            sys.stdout.flush()
            return
        out.print(Text(begin).append(name, style=self._names[line.instance_id]).append(text))
