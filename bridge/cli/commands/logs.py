"""`logs`: what an instance of this host wrote."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from msgspec import Struct

from bridge.box.runtimes.logs import ENGINE, STDERR, STDOUT, instances_dir
from bridge.cli.connect import configuration, connected
from bridge.cli.exit_codes import DONE
from bridge.console import print_json
from bridge.errors import BridgeError, InstanceError
from bridge.gateway.client import ScaleClient
from bridge.subjects import check_name

_POLL = 0.2  # seconds between looks for more


class _Line(Struct):
    stream: str
    line: str


async def run_logs(
    instance_id: str,
    file: Path | None,
    data_dir: Path | None,
    flags: Mapping[str, Any],
    *,
    follow: bool,
    json: bool,
) -> int:
    """Print both logs of the instance; with `follow` go on until it has ended. Raises InstanceError
    where there are none, saying who has them.
    """
    check_name("instance id", instance_id)
    root = data_dir or configuration(file, {}).data_dir
    directory = instances_dir(root) / instance_id
    if not directory.is_dir():
        where = await _elsewhere(instance_id, flags)
        raise InstanceError(f"{instance_id}: no logs in {directory}{where}")
    if not (directory / STDOUT).exists() and (directory / ENGINE).exists():
        engine = (directory / ENGINE).read_text()
        raise InstanceError(
            f"{instance_id} is a container that has not ended, and its engine has its log: "
            f"{engine} logs -f {instance_id}"
        )
    with contextlib.ExitStack() as stack, contextlib.suppress(asyncio.CancelledError):
        tails = [
            _Tail(stack.enter_context((directory / name).open("rb")), name.partition(".")[0])
            for name in (STDOUT, STDERR)
            if (directory / name).exists()
        ]
        while True:
            ended = not follow or not await _lives(instance_id, flags)
            for tail in tails:
                tail.print_new(json, last=ended)
            if ended:
                return DONE
            await asyncio.sleep(_POLL)
    return DONE


class _Tail:
    """A log file, read up to its last whole line."""

    def __init__(self, file: BinaryIO, stream: str) -> None:
        self._file = file
        self._stream = stream
        self._rest = b""

    def print_new(self, json: bool, *, last: bool) -> None:
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        if last and self._rest:
            lines.append(self._rest)
        for line in lines:
            text = line.decode(errors="replace")
            if json:
                print_json(_Line(self._stream, text))
            else:
                print(text, flush=True)


async def _lives(instance_id: str, flags: Mapping[str, Any]) -> bool:
    """Whether the fleet still lists the instance; while nobody can say, it may."""
    try:
        async with connected(flags, "logs") as connection:
            seen = await ScaleClient(connection).observe()
    except BridgeError:
        return True
    return any(info.id == instance_id for info in seen.instances)


async def _elsewhere(instance_id: str, flags: Mapping[str, Any]) -> str:
    """Where to look instead, if a Box can be asked."""
    try:
        async with connected(flags, "logs") as connection:
            hosts = (await ScaleClient(connection).observe()).hosts
    except BridgeError:
        return ": give the data directory of its Box with -c or --data-dir"
    if host := hosts.get(instance_id):
        return f": it runs on host {host}; look there, or give that Box's --data-dir"
    return ": no instance of that id is known; see `box-bridge ps`"
