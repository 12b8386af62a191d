"""Checks whether this host is fit for a Box: configuration, disk, journal, runtime and ports.

The checks may run beside a Box, and leave nothing behind. They block, so the caller needs a
deadline.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Final

from bridge import descriptors
from bridge.box.fleet.host_record import offers
from bridge.box.journal.alerts import list_alerts
from bridge.box.journal.store import JOURNAL, JournalStore, read_snapshot
from bridge.box.runtimes import sockets
from bridge.box.runtimes.oci.engines import find_engine
from bridge.box.runtimes.process.programs import missing_programs
from bridge.box.state.lifecycle import ENDED
from bridge.box.state.runtime_limits import fixed_port
from bridge.diagnostics import Finding, fail, ok, warn
from bridge.errors import BoxError, ConfigError, ForeignJournal, JournalError
from bridge.protocol import now
from bridge.settings import BoxConfig, Config

_MIN_FREE: Final = 64 * 2**20  # bytes; below, the next log or journal write may fill the disk
_LOW_FREE: Final = 2**30  # bytes
_SLOW_WRITE: Final = 0.1  # seconds for one page: each change of an instance waits for one
_ENGINE_TIMEOUT: Final = 4.0  # seconds
_LISTED_PORTS: Final = 3  # so that a finding stays one line
_EPHEMERAL: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


def configuration(config: Config) -> Finding:
    """Whether this host can offer the configured services."""
    try:
        offers(config)
    except ConfigError as exc:
        return fail(str(exc), "fix the file; `box-bridge config check` shows the result")
    if not (config.services or config.box.allow_images):
        return warn("it lists no service", "add [services.NAME] with a command, or an image")
    named = ", ".join(config.services) or "services on request"
    return ok(f"host {config.box.name}, {config.box.runtime} runtime, runs {named}")


def disk(directory: Path) -> Finding:
    """Whether data_dir, or its nearest existing parent, can be written, and how fast."""
    parent = next(path for path in (directory, *directory.parents) if os.path.lexists(path))
    where = str(directory) if parent == directory else f"{parent}, where {directory} will be,"
    other = "choose another [box] data_dir"
    if not parent.is_dir():
        return fail(f"{parent} is not a directory", f"move it away, or {other}")
    try:
        took = _write(parent)
        usage = shutil.disk_usage(parent)
    except OSError as exc:
        return fail(f"{where} cannot be written: {exc.strerror}", f"fix that, or {other}")
    message = f"{where} has {usage.free / 2**30:.1f} GiB free, a write takes {took * 1000:.1f} ms"
    if usage.free < _MIN_FREE:
        return fail(message, f"free at least {_MIN_FREE // 2**20} MiB, or {other}")
    if usage.free < _LOW_FREE:
        return warn(message, "free some space for logs and the journal")
    if took > _SLOW_WRITE:
        return warn(message, f"{other}: each change of an instance waits for a write")
    return ok(message)


def journal(directory: Path) -> Finding:
    """Whether the journal can be read and is undamaged, and whether a Box uses it."""
    path, locked = directory / JOURNAL, _is_locked(directory)
    if locked is None:
        return fail(f"{directory / 'lock'} cannot be opened", "make it readable for the Box's user")
    state = "a Box uses it" if locked else "no Box uses it"
    try:
        if not path.exists():
            return ok(f"there is no journal yet; {state}")
        _check_undamaged(path)
        snapshot = read_snapshot(path)
    except ForeignJournal as exc:
        message, _, fix = str(exc).rpartition(": ")
        return fail(message, fix)
    except (JournalError, OSError) as exc:
        return fail(
            str(exc),
            "start the Box: it sets a damaged file aside, and rebuilds from the fleet's records",
        )
    if alerts := list_alerts(snapshot, alive_at=now() if locked else None):
        cure = "the Box publishes the events once NATS answers; see docs/explanation/journal.md"
        return warn("; ".join(alerts), cure)
    living = sum(entry.life.info.state not in ENDED for entry in snapshot.entries)
    return ok(f"it is undamaged and lists {living} instances; {state}")


def runtime(config: Config) -> Finding:
    """Whether the engine, or the programs of the services, can be used."""
    if config.box.runtime == "process":
        return _programs(config)
    box = config.box
    try:
        engine = find_engine(box.engine, isolation=box.isolation, environ=config.environ)
    except BoxError as exc:
        message, _, fix = str(exc).partition(": ")
        return fail(message, fix)
    problem = _engine_problem([engine.path, "ps", "-q"], config)
    if problem:
        return fail(
            f"{engine.name} ({engine.path}) does not answer: {problem}",
            f"start its service, or run `{engine.path} ps` to see the reason",
        )
    if engine.lacks:
        return warn(
            f"{engine.name} ({engine.path}) answers, but: {'; '.join(set(engine.lacks.values()))}",
            "requests that need it are refused",
        )
    return ok(f"{engine.name} ({engine.path}) answers")


def files(config: Config) -> Finding:
    """Whether the limit of open files is enough for `max_instances`."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = descriptors.needed(config.box.max_instances)
    message = f"{limit} files may be open, and {config.box.max_instances} instances need {needed}"
    if limit < needed:
        return fail(
            message,
            "raise the hard limit (LimitNOFILE= of the unit, ulimit -Hn), or lower max_instances",
        )
    return ok(message)


def ports(config: Config) -> Finding:
    """Whether the fixed ports are free, and whether the range has a port for each instance.

    The ports of this host's own instances count as free. The oci runtime does not use the range.
    """
    box, own = config.box, _own_ports(config.data_dir)
    fixed = {fixed_port(service.port_map) for service in config.services.values()} - {0}
    if taken := _taken(sorted(fixed), own):
        return fail(
            f"fixed by port_map, and taken: {_holders(taken)}",
            "stop that program, or choose another host port in port_map",
        )
    if box.runtime != "process":
        return ok(f"the engine chooses them; {len(fixed)} fixed ports are free or this Box's own")
    return _range(box, _taken(box.port_range, own))


def _range(box: BoxConfig, taken: Sequence[int]) -> Finding:
    """The finding about the range, of which these ports are taken."""
    free = len(box.port_range) - len(taken)
    message = f"{free} of {box.ports} are free or this Box's own"
    if taken:
        message += f"; {_holders(taken)}"
    if free < box.max_instances:
        return fail(
            message, f"choose another [box] ports: {box.max_instances} instances need one each"
        )
    if taken:
        return warn(message, "choose a range of [box] ports that no other program uses")
    if overlap := _ephemeral(box.port_range):
        return warn(
            f"{message}; {overlap}",
            "choose [box] ports outside of that range, so that no connection takes one first",
        )
    return ok(message)


def _write(directory: Path) -> float:
    """Write a page to the disk of `directory`; returns the seconds it took. Raises OSError."""
    with tempfile.TemporaryFile(dir=directory) as file:
        started = time.monotonic()
        file.write(b"\0" * 4096)
        file.flush()
        os.fsync(file.fileno())
        return time.monotonic() - started


def _is_locked(directory: Path) -> bool | None:
    """Whether a Box has locked `directory`; None if the lock cannot be opened."""
    try:
        with (directory / "lock").open("r") as lock:
            # For a moment only: a Box that starts now retries for a second.
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return None


def _check_undamaged(path: Path) -> None:
    """Raise JournalError if the file at `path` is damaged."""
    with contextlib.closing(JournalStore(path, readonly=True)) as store:
        store.check()


def _programs(config: Config) -> Finding:
    """Whether the programs of the services can be run."""
    if missing := missing_programs(config):
        return fail(
            f"missing, or not executable: {', '.join(missing)}",
            "install it, or give its full path in command",
        )
    return ok(f"process: the programs of {len(config.services)} services are there")


def _engine_problem(command: Sequence[str], config: Config) -> str | None:
    """Why the engine does not answer."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_ENGINE_TIMEOUT,
            env=config.environ,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"timeout after {_ENGINE_TIMEOUT:g} s"
    except OSError as exc:
        return str(exc.strerror)
    if done.returncode == 0:
        return None
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else f"exit code {done.returncode}"


def _own_ports(directory: Path) -> set[int]:
    """The ports of the instances in the journal."""
    with contextlib.suppress(JournalError, OSError):
        entries = read_snapshot(directory / JOURNAL).entries
        return {entry.port for entry in entries if entry.life.info.state not in ENDED}
    return set()


def _taken(ports: Iterable[int], own: Container[int]) -> list[int]:
    return [port for port in ports if port not in own and not sockets.is_free(port)]


def _holders(ports: Sequence[int]) -> str:
    """The programs that have the first few of `ports`."""
    listed = [f"{port} is {sockets.holder(port)}'s" for port in ports[:_LISTED_PORTS]]
    return ", ".join(listed) + (
        f" and {len(ports) - _LISTED_PORTS} more" * (len(ports) > _LISTED_PORTS)
    )


def _ephemeral(ports: range) -> str | None:
    """The overlap of `ports` with the range from which the kernel takes ports for connections."""
    try:
        first, last = map(int, _EPHEMERAL.read_text().split())
    except (OSError, ValueError):
        return None
    if ports[-1] < first or ports[0] > last:
        return None
    return f"the kernel takes ports for connections from {first}-{last}, which overlaps"
