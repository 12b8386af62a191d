"""The checks of `doctor`: whether all is there that a Box, or a gateway, needs.

Each check has a deadline, and no check hides another: a check that cannot run because of an earlier
failure is skipped, and reported as skipped. The checks change nothing, and a Box may be at work.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from bridge.auth.roles import Role
from bridge.box import diagnostics as host_checks
from bridge.bus.core.connection import Connection
from bridge.bus.diagnostics import checks as bus_checks
from bridge.bus.diagnostics.limits import limits
from bridge.config import find_file, load, load_nats
from bridge.diagnostics import Finding, Status, fail, skip
from bridge.errors import (
    BridgeError,
    ConfigError,
    ConnectFailed,
    CutOff,
    NoReply,
    StoreRefused,
    without_secret,
)
from bridge.protocol import now
from bridge.settings import Config, NatsConfig
from bridge.tasks import task_scope

_DEADLINE: Final = 6.0  # seconds for one check
_CONNECT: Final = 2.0  # seconds for the connection that several checks share

Check = Callable[[], Awaitable[Finding]]
Clock = Callable[[], datetime]


class ReportLine(Struct, frozen=True, kw_only=True, rename={"message": "says", "fix": "cure"}):
    """The finding of one check."""

    check: str
    status: Status
    message: str
    fix: str


class Report(Struct, frozen=True, kw_only=True):
    """All findings; `ok` unless a check failed."""

    ok: bool
    checks: list[ReportLine]


async def examine(
    file: Path | None,
    flags: Mapping[str, Any],
    *,
    role: Role | None = None,
    name: str = "",
    clock: Clock = now,
) -> Report:
    """Check NATS as the user `name` of `role` sees it; without a role, the Box that `file`
    configures, or a gateway if there is no file.

    Whatever is wrong becomes a finding, not an error.
    """
    with _silent_log():
        config, findings = _check_config(None if role else find_file(file), flags)
        if role is None:
            role, name = (Role(config.box.role), config.box.name) if config else (Role.GATEWAY, "")
        try:
            settings = config.nats if config else load_nats(flags=flags)
        except ConfigError as exc:
            settings = None
            findings["nats"] = fail(str(exc), "correct the setting, the variable or the flag")
        async with contextlib.AsyncExitStack() as stack:
            connection = None
            if settings is not None:
                connection, findings["nats"] = await stack.enter_async_context(_connect(settings))
            checks = _bus_checks(connection, config, role, name, clock) | (
                _host_checks(config) if config else {}
            )
            findings |= await _run_all(checks)
    lines = [
        ReportLine(check=name, status=finding.status, message=finding.message, fix=finding.fix)
        for name, finding in findings.items()
    ]
    return Report(ok=all(line.status is not Status.FAIL for line in lines), checks=lines)


async def examine_host(config: Config) -> dict[str, Finding]:
    """The findings on this host, for the Box that is at work on it."""
    return await _run_all(_host_checks(config))


@contextlib.contextmanager
def _silent_log() -> Iterator[None]:
    """Keep the log silent, because the findings contain what it would report."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        root.setLevel(level)


def _check_config(
    file: Path | None, flags: Mapping[str, Any]
) -> tuple[Config | None, dict[str, Finding]]:
    """The configuration of the Box, None if no file can be read, and the findings on it."""
    if file is None:
        return None, {}
    try:
        config = load(file, flags={"nats": flags})
    except ConfigError as exc:
        cure = "correct it; this host and the rights of its Box are not checked until then"
        return None, {"config": fail(str(exc), cure)}
    return config, {"config": host_checks.configuration(config)}


@contextlib.asynccontextmanager
async def _connect(settings: NatsConfig) -> AsyncIterator[tuple[Connection | None, Finding]]:
    """A connection, None if no server takes it, and the finding on it."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            connection = await stack.enter_async_context(
                Connection.open(settings, name="box-bridge doctor", patience=_CONNECT)
            )
        except ConfigError as exc:
            yield None, fail(str(exc), "correct the file or the setting")
        except ConnectFailed as exc:
            urls = without_secret(", ".join(exc.urls))
            yield None, fail(f"no connection to {urls}: {exc.reason}", exc.cure)
        else:
            yield connection, await _run(lambda: bus_checks.server(connection))


def _bus_checks(
    connection: Connection | None, config: Config | None, role: Role, name: str, clock: Clock
) -> dict[str, Check]:
    """The checks that need a connection."""
    if connection is None:
        names = ("jetstream", "permissions", "topology", "limits", "clock")
        return dict.fromkeys(names, _skip_unconnected)
    timing = config.timing if config else None
    checks: dict[str, Check] = {
        "jetstream": lambda: bus_checks.jetstream(connection, role),
        "permissions": lambda: bus_checks.rights(connection, role, name),
        "topology": lambda: bus_checks.streams(connection, timing, role),
        "limits": lambda: limits(connection, role, name),
        "clock": lambda: bus_checks.clock(connection, clock),
    }
    if role is Role.INSTANCE:  # it may call nothing of JetStream's API
        return {"permissions": checks["permissions"]}
    return checks


async def _skip_unconnected() -> Finding:
    return skip("not looked at: there is no connection to NATS")


def _host_checks(config: Config) -> dict[str, Check]:
    """The checks of this machine. They block, so each has a thread."""
    return {
        "disk": lambda: _run_in_thread(lambda: host_checks.disk(config.data_dir)),
        "files": lambda: _run_in_thread(lambda: host_checks.files(config)),
        "journal": lambda: _run_in_thread(lambda: host_checks.journal(config.data_dir)),
        "runtime": lambda: _run_in_thread(lambda: host_checks.runtime(config)),
        "ports": lambda: _run_in_thread(lambda: host_checks.ports(config)),
    }


async def _run_all(checks: Mapping[str, Check]) -> dict[str, Finding]:
    """Run the checks concurrently; the findings are in the order of `checks`."""
    async with task_scope() as tasks:
        running = {name: tasks.create_task(_run(check)) for name, check in checks.items()}
        return {name: await task for name, task in running.items()}


async def _run(check: Check) -> Finding:
    """Run one check; an error or the end of its deadline is a finding too."""
    try:
        async with asyncio.timeout(_DEADLINE):
            return await check()
    except TimeoutError:
        return fail(f"no answer within {_DEADLINE:g} s", "look whether NATS and the disk answer")
    except (CutOff, NoReply) as exc:
        return fail(str(exc), "look how NATS is: `nats server check jetstream`, and its log")
    except StoreRefused as exc:
        return fail(exc.problem, exc.cure or "see the log of the NATS server")
    except (BridgeError, OSError) as exc:
        message, _, fix = str(exc).partition(": ")
        return fail(message, fix or "see the other checks")


async def _run_in_thread(work: Callable[[], Finding]) -> Finding:
    """Run `work` in a daemon thread: the process can end although a disk hangs for good."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Finding] = loop.create_future()

    def deliver(finding: Finding | None, error: Exception | None) -> None:
        if done.done():
            return
        if finding is not None:
            done.set_result(finding)
        elif error is not None:
            done.set_exception(error)

    def run() -> None:
        finding, error = None, None
        try:
            finding = work()
        except Exception as exc:  # raised where `done` is awaited
            error = exc
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(deliver, finding, error)

    threading.Thread(target=run, name="check", daemon=True).start()
    return await done
