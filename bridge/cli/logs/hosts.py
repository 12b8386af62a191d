"""Where the logs of an instance, or of a service, are: on hosts over the bus, or in files here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Final

from bridge.bus.core.connection import Connection
from bridge.cli.known_names import unknown
from bridge.cli.logs.source import Ask
from bridge.errors import BridgeError, InstanceError
from bridge.gateway.client import ScaleClient
from bridge.gateway.errors import ScaleError
from bridge.gateway.operator import Operator
from bridge.log_protocol import LogChunk, LoggedInstance, LogRead, LogsRequest, LogsResponse
from bridge.tasks import task_scope

_TIMEOUT: Final = 3.0  # seconds for the list of one host
_LIMIT: Final = 256 * 1024  # bytes of a part that is read here
_LIVES_FOR: Final = 1.0  # seconds for which the living instances of this host are remembered

Found = dict[str, tuple[LoggedInstance, Ask]]
"""The instances whose logs were found, by id, and how to ask for them."""


async def find_on_hosts(connection: Connection, name: str) -> tuple[Found, list[str]]:
    """The logs of `name`, an instance or a service, and the hosts that do not answer."""
    operator = Operator(connection)
    service = name.rpartition("-")[0]
    seen = await ScaleClient(connection).observe(service) if service else None
    host = seen.hosts.get(name) if seen else None
    names = [host] if host else [one.name for one in await operator.hosts() if one.live]
    found: Found = {}
    silent: list[str] = []
    async with task_scope() as tasks:
        lists = {
            one: tasks.create_task(_list(operator, one, name), name=f"list-{one}") for one in names
        }
        for one, task in lists.items():
            listed = await task
            if listed is None:
                silent.append(one)
            else:
                ask = partial(operator.logs, one)
                found |= {item.id: (item, ask) for item in listed}
    return found, silent


async def _list(operator: Operator, host: str, name: str) -> list[LoggedInstance] | None:
    """The instances whose logs are on `host`; None if its Box does not answer."""
    try:
        return (await operator.logs(host, LogsRequest(name=name), timeout=_TIMEOUT)).instances
    except BridgeError:
        return None


async def missing(connection: Connection, name: str, silent: Iterable[str]) -> ScaleError:
    """The error about a `name` that has no logs on any host."""
    if hosts := ", ".join(silent):
        return ScaleError(f"no logs of {name} are found, and no answer came from {hosts}")
    seen = await ScaleClient(connection).observe()
    services = [one.name for one in await Operator(connection).services()]
    service = name.rpartition("-")[0]
    if name in services:
        return ScaleError(f"{name} has no instances, and no logs of earlier ones are kept")
    if service in services:
        ids = [info.id for info in seen.instances if info.service == service]
        return ScaleError(unknown("instance", name, ids))
    return ScaleError(unknown("service", name, services))


class LocalLogs:
    """The logs in the directories of this host's Box, whether it runs or not."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._living: frozenset[str] = frozenset()
        self._looked_at = 0.0

    def find(self, name: str) -> Found:
        """The logs of `name`, an instance or a service. Raises InstanceError for a container that
        has not ended: its engine has its log.
        """
        found: Found = {}
        for directory in sorted(self.root.iterdir()) if self.root.is_dir() else ():
            if name in (directory.name, directory.name.rpartition("-")[0]) and directory.is_dir():
                self._check_engine(directory)
                instance = LoggedInstance(id=directory.name, ended=False)
                found[directory.name] = instance, self.ask
        return found

    def _check_engine(self, directory: Path) -> None:
        from bridge.box.runtimes.logs import ENGINE, STDOUT

        if not (directory / STDOUT).exists() and (directory / ENGINE).exists():
            engine = (directory / ENGINE).read_text()
            raise InstanceError(
                f"{directory.name} is a container that has not ended, and its engine has its log: "
                f"{engine} logs -f {directory.name}"
            )

    async def ask(self, request: LogsRequest) -> LogsResponse:
        """The parts that the request asks for."""
        chunks = [await asyncio.to_thread(self._read, read) for read in request.reads]
        return LogsResponse(chunks=chunks)

    def _read(self, read: LogRead) -> LogChunk:
        from bridge.box.runtimes.log_pages import read_files

        ended = read.instance_id not in self._list_living()
        directory = self.root / read.instance_id
        return read_files(directory, read, _LIMIT, time.time_ns(), ended=ended)

    def _list_living(self) -> frozenset[str]:
        from bridge.box.runtimes.process.shim import list_living

        if time.monotonic() - self._looked_at > _LIVES_FOR:
            self._living = frozenset(list_living(self.root.absolute()))
            self._looked_at = time.monotonic()
        return self._living
