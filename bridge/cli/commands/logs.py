"""`logs`: what an instance of this host has written."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Annotated, BinaryIO, Final

from cyclopts import Parameter
from msgspec import Struct

from bridge.cli.exit_codes import DONE
from bridge.cli.flags import ConfigFile, DataDir, Json, Link
from bridge.console import print_json
from bridge.errors import BridgeError, InstanceError
from bridge.protocol import InstancesResponse
from bridge.subjects import check_name

_POLL: Final = 0.2  # seconds between looks for more
_EMPTIED: Final = 0.02  # seconds in which a Box empties a log after it has renamed the copy


class _Line(Struct):
    stream: str
    line: str


async def logs(
    instance_id: Annotated[str, Parameter(help="The instance, as `ps` or an event names it.")],
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

    The logs of the last ten ended instances of each service are kept. While a
    container runs, its engine has its log; this verb prints the command that
    shows it. For example:

        box-bridge logs web-01jz3k --follow
        box-bridge logs web-01jz3k --data-dir /var/lib/box-bridge
    """
    import asyncio

    from bridge.box.runtimes.logs import STDERR, STDOUT

    check_name("instance id", instance_id)
    directory = await _find(instance_id, config, data_dir, link)
    with contextlib.ExitStack() as stack, contextlib.suppress(asyncio.CancelledError):
        tails = [
            _Tail(stack.enter_context((directory / name).open("rb")), directory / name)
            for name in (STDOUT, STDERR)
            if (directory / name).exists()
        ]
        while True:
            ended = not follow or not await _is_listed(instance_id, link)
            for tail in tails:
                tail.print_new(json, last=ended)
            if ended:
                break
            await asyncio.sleep(_POLL)
    return DONE


async def _find(
    instance_id: str, config: Path | None, data_dir: Path | None, link: Link | None
) -> Path:
    """The directory of the logs. Raises InstanceError, which says where to look instead."""
    from bridge.box.runtimes.logs import ENGINE, STDOUT, instances_dir
    from bridge.cli.box_config import load_config

    root = data_dir or load_config(config, {}).data_dir
    directory = instances_dir(root) / instance_id
    if not directory.is_dir():
        hint = await _hint(instance_id, link)
        raise InstanceError(f"{instance_id}: no logs in {directory}{hint}")
    if not (directory / STDOUT).exists() and (directory / ENGINE).exists():
        engine = (directory / ENGINE).read_text()
        raise InstanceError(
            f"{instance_id} is a container that has not ended, and its engine has its log: "
            f"{engine} logs -f {instance_id}"
        )
    return directory


class _Tail:
    """A log, read up to its last whole line. It begins with the older lines that are kept.

    The Box empties a log that is too long, after it has copied its end to another file.
    """

    def __init__(self, log: BinaryIO, file: Path) -> None:
        self._log = log
        self._file = file
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
                print(text, flush=True)

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
    with contextlib.suppress(FileNotFoundError):
        return file.read_bytes()
    return b""


async def _observe(link: Link | None) -> InstancesResponse | None:
    """The fleet's instances; None if no Box answers."""
    from bridge.cli.connect import connect
    from bridge.gateway.client import ScaleClient

    try:
        async with connect(link, "logs") as connection:
            return await ScaleClient(connection).observe()
    except BridgeError:
        return None


async def _is_listed(instance_id: str, link: Link | None) -> bool:
    """Whether the fleet lists the instance; True if no Box answers."""
    seen = await _observe(link)
    return seen is None or any(info.id == instance_id for info in seen.instances)


async def _hint(instance_id: str, link: Link | None) -> str:
    """Where the logs are, as far as the fleet knows."""
    seen = await _observe(link)
    if seen is None:
        return ": give the data directory of its Box with -c or --data-dir"
    if host := seen.hosts.get(instance_id):
        return f": it runs on host {host}; look there, or give that Box's --data-dir"
    return ": no instance of that id is known; see `box-bridge ps`"
