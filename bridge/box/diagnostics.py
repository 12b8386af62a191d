"""Is this host fit for a Box? One check each for the disk, the journal, the runtime and the ports.

They may be asked while a Box is at work here, and leave nothing behind. They block: whoever asks
sees to a deadline.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Final

from bridge.box.fleet.host_record import offers
from bridge.box.journal.alerts import list_alerts
from bridge.box.journal.store import JOURNAL, JournalStore, read_snapshot
from bridge.box.runtimes import sockets
from bridge.box.runtimes.oci.engines import find_engine
from bridge.box.state.lifecycle import ENDED
from bridge.box.state.runtime_limits import fixed_port
from bridge.diagnostics import Finding, fail, ok, warn
from bridge.errors import BoxError, ConfigError, ForeignJournal, JournalError
from bridge.protocol import now
from bridge.settings import BoxConfig, Config

_LEAST: Final = 64 * 2**20  # bytes; below, the next log or journal write may be the last
_LOW: Final = 2**30
_SLOW: Final = 0.1  # seconds to get a page on disk: each change of an instance waits for that
_ENGINE: Final = 4.0  # seconds for the engine to answer
_SHOWN: Final = 3  # ports, so that a finding stays a line
_EPHEMERAL: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


def configuration(config: Config) -> Finding:
    """Whether what is configured can be offered."""
    try:
        offers(config)
    except ConfigError as exc:
        return fail(str(exc), "mend the file; `box-bridge config check` shows what it comes to")
    if not (config.services or config.box.allow_images):
        return warn("it lists no service", "add [services.NAME] with a command, or an image")
    named = ", ".join(config.services) or "what requests ask for"
    return ok(f"host {config.box.name}, {config.box.runtime} runtime, runs {named}")


def disk(directory: Path) -> Finding:
    """Whether data_dir, or where it would be made, takes what is to outlive a loss of power."""
    there = next(path for path in (directory, *directory.parents) if os.path.lexists(path))
    where = str(directory) if there == directory else f"{there}, where {directory} would be made,"
    other = "choose another [box] data_dir"
    if not there.is_dir():
        return fail(f"{there} is no directory", f"move it away, or {other}")
    try:
        took = _write(there)
        usage = shutil.disk_usage(there)
    except OSError as exc:
        return fail(f"{where} cannot be written: {exc.strerror}", f"mend that, or {other}")
    says = f"{where} has {usage.free / 2**30:.1f} GiB free, a write takes {took * 1000:.1f} ms"
    if usage.free < _LEAST:
        return fail(says, f"make room: {_LEAST // 2**20} MiB at the very least; or {other}")
    if usage.free < _LOW:
        return warn(says, "make room: logs and the journal need it")
    if took > _SLOW:
        return warn(says, f"{other}: each change of an instance waits for it")
    return ok(says)


def journal(directory: Path) -> Finding:
    """Whether the journal can be read and is whole, and whether a Box has it."""
    path, holder = directory / JOURNAL, _lock_holder(directory)
    if holder is None:
        return fail(f"{directory / 'lock'} cannot be opened", "give it to the Box's user")
    state = "a Box is at work on it" if holder else "no Box is at work on it"
    try:
        if not path.exists():
            return ok(f"there is none yet; {state}")
        _check_whole(path)
        snapshot = read_snapshot(path)
    except ForeignJournal as exc:
        says, _, cure = str(exc).rpartition(": ")
        return fail(says, cure)
    except (JournalError, OSError) as exc:
        return fail(
            str(exc),
            "start the Box: it keeps a damaged one, and builds another from what the fleet knows",
        )
    if told := list_alerts(snapshot, alive_at=now() if holder else None):
        return warn("; ".join(told), "the Box tells them once NATS answers; see docs/faults.md")
    living = sum(entry.life.info.state not in ENDED for entry in snapshot.entries)
    return ok(f"it is whole and knows {living} instances; {state}")


def runtime(config: Config) -> Finding:
    """Whether what makes the instances is there, and what they are made from."""
    if config.box.runtime == "process":
        return _programs(config)
    box = config.box
    try:
        engine = find_engine(box.engine, isolation=box.isolation, environ=config.environ)
    except BoxError as exc:
        says, _, cure = str(exc).partition(": ")
        return fail(says, cure)
    problem = _unanswered([engine.path, "ps", "-q"], config)
    if problem:
        return fail(
            f"{engine.name} ({engine.path}) does not answer: {problem}",
            f"start its service, or see what `{engine.path} ps` says",
        )
    if engine.lacks:
        return warn(
            f"{engine.name} ({engine.path}) answers, but: {'; '.join(set(engine.lacks.values()))}",
            "a request that needs it is refused",
        )
    return ok(f"{engine.name} ({engine.path}) answers")


def ports(config: Config) -> Finding:
    """Whether fixed ports are free, and the range has one for each instance, where the runtime
    takes them from it. Those that this host's own instances have are theirs.
    """
    box, own = config.box, _own_ports(config.data_dir)
    fixed = {fixed_port(service.port_map) for service in config.services.values()} - {0}
    if held := _taken(sorted(fixed), own):
        return fail(
            f"fixed by port_map, and taken: {_holders(held)}",
            "end that program, or choose another host port in port_map",
        )
    if box.runtime != "process":
        return ok(f"the engine chooses them; {len(fixed)} fixed ones are free or this Box's own")
    return _range(box, _taken(box.port_range, own))


def _range(box: BoxConfig, taken: Sequence[int]) -> Finding:
    """What there is to say of the range of which these are taken."""
    free = len(box.port_range) - len(taken)
    says = f"{free} of {box.ports} are free or this Box's own"
    if taken:
        says += f"; {_holders(taken)}"
    if free < box.max_instances:
        return fail(
            says, f"choose another [box] ports: {box.max_instances} instances need one each"
        )
    if taken:
        return warn(says, "choose a range of [box] ports that nobody else uses")
    if overlap := _ephemeral(box.port_range):
        return warn(
            f"{says}; {overlap}",
            "choose [box] ports outside of it, so that no connection takes one first",
        )
    return ok(says)


def _write(directory: Path) -> float:
    """Put a page on the disk beneath `directory`; seconds that it took. Raises OSError."""
    with tempfile.TemporaryFile(dir=directory) as file:
        started = time.monotonic()
        file.write(b"\0" * 4096)
        file.flush()
        os.fsync(file.fileno())
        return time.monotonic() - started


def _lock_holder(directory: Path) -> bool | None:
    """Whether a Box holds `directory`; None if that cannot be found out."""
    try:
        with (directory / "lock").open("r") as lock:
            # For a moment: a Box that starts just now asks again for a second.
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return None


def _check_whole(path: Path) -> None:
    """Raise JournalError if the file at `path` is damaged."""
    try:
        store = JournalStore(path, readonly=True)
        try:
            store.check()
        finally:
            store.close()
    except sqlite3.Error as exc:
        raise JournalError(f"the journal {path} is damaged: {exc}") from exc


def _programs(config: Config) -> Finding:
    """Whether the programs of the services are there."""
    missing = []
    for name, service in config.services.items():
        program = next(iter(service.command), "")
        base = config.directory / Path(service.cwd).expanduser()
        found = base / program if "/" in program else program
        if shutil.which(found, path=config.environ.get("PATH", os.defpath)) is None:
            missing.append(f"{program} of service {name}")
    if missing:
        return fail(
            f"not to be found, or not to be run: {', '.join(missing)}",
            "install it, or name it with its full path in command",
        )
    return ok(f"process: {len(config.services)} services, their programs are there")


def _unanswered(command: Sequence[str], config: Config) -> str:
    """Why the engine gives no answer; empty if it does."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_ENGINE,
            env=config.environ,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"not within {_ENGINE:g} s"
    except OSError as exc:
        return str(exc.strerror)
    if done.returncode == 0:
        return ""
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return said[-1][:200] if said else f"exit code {done.returncode}"


def _own_ports(directory: Path) -> set[int]:
    """The ports of the instances that the journal knows here."""
    with contextlib.suppress(JournalError, OSError):
        entries = read_snapshot(directory / JOURNAL).entries
        return {entry.port for entry in entries if entry.life.info.state not in ENDED}
    return set()


def _taken(ports: Iterable[int], own: Container[int]) -> list[int]:
    return [port for port in ports if port not in own and not sockets.is_free(port)]


def _holders(ports: Sequence[int]) -> str:
    """Who has the first few of `ports`."""
    shown = [f"{port} is {sockets.holder(port)}'s" for port in ports[:_SHOWN]]
    return ", ".join(shown) + (f" and {len(ports) - _SHOWN} more" * (len(ports) > _SHOWN))


def _ephemeral(ports: range) -> str:
    """What to say of a range from which the kernel takes ports for connections; "" if of none."""
    try:
        first, last = map(int, _EPHEMERAL.read_text().split())
    except (OSError, ValueError):
        return ""
    if ports[-1] < first or ports[0] > last:
        return ""
    return f"connections get theirs from {first}-{last}, which overlaps"
