"""`logs`: what an instance of this host has written."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, BinaryIO, Final

from cyclopts import Parameter
from msgspec import Struct

from bridge.cli.completion import INSTANCES, SERVICES, completer
from bridge.cli.exit_codes import DONE
from bridge.cli.flags import ConfigFile, DataDir, Json, Link
from bridge.console import print_json
from bridge.errors import BridgeError, InstanceError
from bridge.printable import printable
from bridge.private_files import open_regular
from bridge.protocol import InstancesResponse
from bridge.subjects import check_name

_LISTED: Final = 10  # instances that a message names
_POLL: Final = 0.2  # seconds between looks for more
_EMPTIED: Final = 0.02  # seconds in which a Box empties a log after it has renamed the copy


class _Line(Struct):
    stream: str
    line: str


async def logs(
    instance_id: Annotated[
        str,
        Parameter(
            completer=completer(INSTANCES, SERVICES),
            help="The instance, as `ps` or an event names it, or a service.",
        ),
    ],
    /,
    *,
    follow: Annotated[
        bool,
        Parameter(name=["--follow", "-f"], negative="", help="Continue until the instance ends."),
    ] = False,
    config: ConfigFile = None,
    data_dir: DataDir = None,
    link: Link | None = None,
    json: Json = False,
) -> int:
    """Show the stdout and stderr of an instance of this host.

    For a service it shows those of its instances on this host, each line with
    its instance. The logs of the last ten ended instances of each service are
    kept. A terminal gets no control characters, a pipe gets each line as it was
    written. While a container runs, its engine has its log; this verb prints the
    command that shows it. For example:

        box-bridge logs web-01jz3k --follow
        box-bridge logs web-01jz3k --data-dir /var/lib/box-bridge
    """
    import asyncio

    from bridge.box.runtimes.logs import STDERR, STDOUT

    check_name("instance id", instance_id)
    directories = await _find(instance_id, config, data_dir, link)
    with contextlib.ExitStack() as stack, contextlib.suppress(asyncio.CancelledError):
        tails = [
            _Tail(
                stack.enter_context(os.fdopen(open_regular(directory / name), "rb")),
                directory / name,
                "" if directory.name == instance_id else f"{directory.name}  ",
            )
            for directory in directories
            for name in (STDOUT, STDERR)
            if (directory / name).is_file()
        ]
        names = [directory.name for directory in directories]
        while True:
            ended = not follow or not await _is_listed(names, link)
            for tail in tails:
                tail.print_new(json, last=ended)
            if ended:
                break
            await asyncio.sleep(_POLL)
    return DONE


async def _find(
    name: str, config: Path | None, data_dir: Path | None, link: Link | None
) -> list[Path]:
    """The directories of the logs of an instance, or of a service's instances on this host. Raises
    InstanceError, which says where to look instead.
    """
    from bridge.box.runtimes.logs import ENGINE, STDOUT, instances_dir
    from bridge.cli.box_config import load_config

    root = instances_dir(data_dir or load_config(config, {}).data_dir)
    directory = root / name
    if not directory.is_dir():
        if of_service := [one for one in sorted(root.glob(f"{name}-*")) if _is_of(name, one)]:
            return of_service
        raise InstanceError(await _lack(name, root, link))
    if not (directory / STDOUT).exists() and (directory / ENGINE).exists():
        engine = (directory / ENGINE).read_text()
        raise InstanceError(
            f"{name} is a container that has not ended, and its engine has its log: "
            f"{engine} logs -f {name}"
        )
    return [directory]


def _is_of(service: str, directory: Path) -> bool:
    """Whether `directory` is that of an instance of `service`: an id is ``<service>-<random>``."""
    return directory.is_dir() and "-" not in directory.name.removeprefix(f"{service}-")


class _Tail:
    """A log, read up to its last whole line. It begins with the older lines that are kept.

    The Box empties a log that is too long, after it has copied its end to another file.
    """

    def __init__(self, log: BinaryIO, file: Path, prefix: str = "") -> None:
        self._log = log
        self._file = file
        self._prefix = prefix
        self._stream = file.name.partition(".")[0]
        self._rest = b""
        self._rotated = self._older_version()
        self._older = b"".join(map(_read, reversed(self._older_files())))

    def print_new(self, json: bool, *, last: bool) -> None:
        *lines, self._rest = (self._rest + self._older + self._new()).split(b"\n")
        self._older = b""
        if last and self._rest:
            lines.append(self._rest)
        for line in lines:
            text = line.decode(errors="replace")
            if json:
                print_json(_Line(self._stream, text))
            else:
                text = printable(text.expandtabs()) if sys.stdout.isatty() else text
                print(self._prefix + text, flush=True)

    def _new(self) -> bytes:
        """What the log has got since the last call, also if it was emptied meanwhile."""
        place, missed = self._log.tell(), b""
        version = self._older_version()
        rotated = version not in (None, self._rotated)
        if rotated:
            time.sleep(_EMPTIED)
            missed = _read(self._file.with_name(f"{self._file.name}.1"))[place:]
            self._rotated = version
        if rotated or os.fstat(self._log.fileno()).st_size < place:
            self._log.seek(0)
        return missed + self._log.read()

    def _older_version(self) -> tuple[int, int] | None:
        """Changes when the log is rotated; None before the first time."""
        with contextlib.suppress(FileNotFoundError):
            status = self._file.with_name(f"{self._file.name}.1").stat()
            return status.st_ino, status.st_mtime_ns
        return None

    def _older_files(self) -> list[Path]:
        numbered = {
            int(file.suffix[1:]): file
            for file in self._file.parent.glob(f"{self._file.name}.*")
            if file.suffix[1:].isdecimal()
        }
        return [numbered[number] for number in sorted(numbered)]


def _read(file: Path) -> bytes:
    with contextlib.suppress(OSError), os.fdopen(open_regular(file), "rb") as log:
        return log.read()
    return b""


async def _observe(link: Link | None) -> InstancesResponse:
    """The fleet's instances. Raises BridgeError if no Box answers."""
    from bridge.cli.connect import connect
    from bridge.gateway.client import ScaleClient

    async with connect(link, "logs") as connection:
        return await ScaleClient(connection).observe()


async def _is_listed(names: Sequence[str], link: Link | None) -> bool:
    """Whether the fleet lists one of the instances; True if no Box answers."""
    try:
        seen = await _observe(link)
    except BridgeError:
        return True
    return any(info.id in names for info in seen.instances)


async def _lack(name: str, directory: Path, link: Link | None) -> str:
    """Why `directory` has no logs of `name`, an instance or a service, and where they are."""
    from bridge.cli.connect import connect
    from bridge.cli.known_names import unknown
    from bridge.gateway.client import ScaleClient
    from bridge.gateway.operator import Operator

    lack = f"no logs of {name} in {directory}"
    try:
        async with connect(link, "logs") as connection:
            seen = await ScaleClient(connection).observe()
            services = [one.name for one in await Operator(connection).services()]
    except BridgeError as exc:
        return f"{lack}: give the data directory of its Box with -c or --data-dir ({exc})"
    if host := seen.hosts.get(name):
        return f"{lack}: it runs on host {host}; look there, or give that Box's --data-dir"
    if of_service := [info.id for info in seen.instances if info.service == name]:
        places = ", ".join(f"{one} on {seen.hosts.get(one, '?')}" for one in of_service[:_LISTED])
        return f"{lack}: its instances are {places}; look there"
    if name in services:
        return f"{lack}: {name} has no instances"
    service = name.rpartition("-")[0]
    if service in services or (service and not services):
        of_service = [info.id for info in seen.instances if info.service == service]
        return unknown("instance", name, of_service)
    return unknown("service", name, services)
