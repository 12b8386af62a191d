"""What an uninstall deletes on this host and on NATS, and the deletion.

Only what box-bridge has made is deleted: a data directory may have other files in it, which stay.
The streams of a fleet are deleted only where no other host is live.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

from msgspec import Struct

from bridge.box.host_directory import OWNED, is_locked
from bridge.box.journal.store import JOURNAL, read_snapshot
from bridge.box.runtimes.process_identity import is_alive
from bridge.box.state.lifecycle import ENDED
from bridge.box.state.records import HostRecord
from bridge.bus.core.connection import Connection
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.kv_view import KeyValueView
from bridge.errors import BoxError, BusError, HostTaken, JournalError
from bridge.settings import Config
from bridge.tasks import task_scope

UNITS: Final = Path("/etc/systemd/system")
"""Where an administrator's units are."""

_UNIT_NAMES: Final = ("box-bridge.service", "box-bridge-relay.service")
_TIMEOUT: Final = 10.0  # seconds for the leases of the hosts
_UNREACHABLE: Final = 0.4  # seconds for a server at whose address no program listens


class Plan(Struct, frozen=True, kw_only=True):
    """What an uninstall deletes: streams by name with their number of messages, and paths.

    `kept` are sentences about what stays, with the reason.
    """

    streams: dict[str, int]
    paths: list[str]
    units: list[str]
    kept: list[str]

    @property
    def empty(self) -> bool:
        """Whether there is nothing to delete."""
        return not (self.streams or self.paths or self.units)


def check_idle(config: Config) -> None:
    """Raise HostTaken if a Box uses the data directory, BoxError if instances still run."""
    directory = config.data_dir
    if is_locked(directory):
        raise HostTaken(f"a Box uses {directory}: stop it first, with its instances drained")
    if not (directory / JOURNAL).exists():
        return
    try:
        entries = read_snapshot(directory / JOURNAL).entries
    except JournalError as exc:
        raise BoxError(f"{exc}: end the instances of this host, then delete {directory}") from exc
    living = [
        entry.life.info.id
        for entry in entries
        if entry.life.info.state not in ENDED
        and (entry.identity is None or is_alive(entry.identity))
    ]
    if living:
        raise BoxError(
            f"{len(living)} instances of this host still run: start its Box with `--on-exit drain` "
            f"and stop it ({', '.join(living[:5])})"
        )


@contextlib.asynccontextmanager
async def open_nats(config: Config) -> AsyncIterator[tuple[Connection | None, str]]:
    """A connection as the Box has it; None with the reason if NATS cannot be reached."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            connection = await stack.enter_async_context(
                Connection.open(config.nats, name="box-bridge uninstall", unreachable=_UNREACHABLE)
            )
        except BusError as exc:
            yield None, f"the streams of NATS stay: {exc}"
            return
        yield connection, ""


async def survey(config: Config, connection: Connection | None, why: str) -> Plan:
    """What there is to delete. Raises BusError if NATS does not answer."""
    found: dict[str, int] = {}
    kept = [why] if why else []
    if connection is not None:
        found = await _streams(connection)
        others = await _other_hosts(connection, config.box.name) if found else []
        if others:
            kept.append(f"the streams of NATS stay: {', '.join(others[:5])} still uses them")
            found = {}
    directory = config.data_dir
    paths = [path for name in OWNED for path in sorted(directory.glob(name))]
    there = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    if left := there - {path.name for path in paths}:
        kept.append(f"{directory} stays: it has other files ({', '.join(sorted(left)[:5])})")
    elif directory.is_dir():
        paths = [directory]
    return Plan(
        streams=found,
        paths=[str(path) for path in paths],
        units=[str(UNITS / name) for name in _UNIT_NAMES if (UNITS / name).exists()],
        kept=[*kept, "the configuration file and the files of `auth init` stay"],
    )


async def delete(plan: Plan, connection: Connection | None) -> AsyncIterator[str]:
    """Delete what `plan` lists; yields what was deleted. Raises BusError and BoxError."""
    for name in plan.streams:
        assert connection is not None, "the plan was made with it"
        await topology.delete_stream(connection, name)
        yield f"stream {name}"
    for unit in map(Path, plan.units):
        await asyncio.to_thread(_delete_unit, unit)
        yield str(unit)
    for path in map(Path, plan.paths):
        await asyncio.to_thread(_delete_path, path)
        yield str(path)


def _delete_unit(unit: Path) -> None:
    systemctl = shutil.which("systemctl")
    with _mapped_errors(unit):
        if systemctl:
            subprocess.run([systemctl, "disable", unit.name], check=False, capture_output=True)
        unit.unlink()
        if systemctl:
            subprocess.run([systemctl, "daemon-reload"], check=False, capture_output=True)


def _delete_path(path: Path) -> None:
    with _mapped_errors(path):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


async def _streams(connection: Connection) -> dict[str, int]:
    subjects = connection.subjects
    names = [str(config.name) for config in topology.streams(subjects)] + [subjects.dead_stream]
    infos = {name: await topology.stream_info(connection, name) for name in names}
    return {name: info.state.messages for name, info in infos.items() if info is not None}


async def _other_hosts(connection: Connection, name: str) -> list[str]:
    """The hosts beside `name` whose leases are in the store."""
    hosts = KeyValueView(connection, connection.subjects.hosts_bucket, HostRecord)
    async with task_scope() as tasks:
        running = tasks.create_task(hosts.run(), name="hosts")
        async with asyncio.timeout(_TIMEOUT):
            await hosts.wait_live()
        running.cancel()
    return sorted({key for key, _ in hosts.items()} - {name})


@contextlib.contextmanager
def _mapped_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise BoxError(f"{path} cannot be deleted: {exc.strerror}") from exc
