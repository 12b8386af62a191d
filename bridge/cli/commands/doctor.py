"""`doctor`: is everything there that a Box, or a gateway, needs?

Each check has a deadline, and none hides another: what a check could not look at because of an
earlier failure is skipped, and said so. Nothing is changed, and a Box may be at work meanwhile.
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
from rich.text import Text

from bridge.box import diagnostics as host_checks
from bridge.bus.core.connection import Connection
from bridge.bus.diagnostics import checks as bus_checks
from bridge.cli.exit_codes import DONE, FAILED
from bridge.config import find_file, load, load_nats
from bridge.console import out, print_json
from bridge.diagnostics import Finding, Status, fail, skip
from bridge.errors import BridgeError, ConfigError, ConnectFailed, CutOff, NoReply, without_secret
from bridge.protocol import now
from bridge.settings import Config, NatsConfig
from bridge.tasks import task_scope

_DEADLINE: Final = 6.0  # seconds for one check
_CONNECT: Final = 2.0  # seconds for the connection that several checks share
_WIDTH: Final = len("permissions")
_STYLES: Final = {
    Status.OK: "green",
    Status.WARN: "yellow",
    Status.FAIL: "bold red",
    Status.SKIP: "bright_black",
}

Check = Callable[[], Awaitable[Finding]]
Clock = Callable[[], datetime]


class ReportLine(Struct, frozen=True, kw_only=True):
    """One line of the report."""

    check: str
    status: Status
    says: str
    cure: str


class Report(Struct, frozen=True, kw_only=True):
    """All that was found; `ok` if no check failed."""

    ok: bool
    checks: list[ReportLine]


async def run_doctor(
    file: Path | None, flags: Mapping[str, Any], *, json: bool, clock: Clock = now
) -> int:
    """Check all there is to check, and print a line each."""
    with _quiet():
        report = await examine(file, flags, clock=clock)
    if json:
        print_json(report)
    else:
        for told in report.checks:
            out.print(_line(told))
    return DONE if report.ok else FAILED


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the log silent: what it would say is what is checked."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        root.setLevel(level)


async def examine(file: Path | None, flags: Mapping[str, Any], *, clock: Clock = now) -> Report:
    """What there is to say of the Box that `file` configures, or of a gateway without one. Raises
    nothing on account of what is wrong.
    """
    config, found = _configured(find_file(file), flags)
    try:
        settings = config.nats if config else load_nats(flags=flags)
    except ConfigError as exc:
        settings = None
        found["nats"] = fail(str(exc), "mend the setting, the variable or the flag")
    async with contextlib.AsyncExitStack() as stack:
        connection = None
        if settings is not None:
            connection, found["nats"] = await stack.enter_async_context(_connected(settings))
        checks = _of_bus(connection, config, clock) | (_of_host(config) if config else {})
        found |= await _all(checks)
    told = [
        ReportLine(check=name, status=finding.status, says=finding.says, cure=finding.cure)
        for name, finding in found.items()
    ]
    return Report(ok=all(item.status is not Status.FAIL for item in told), checks=told)


def _configured(
    file: Path | None, flags: Mapping[str, Any]
) -> tuple[Config | None, dict[str, Finding]]:
    """The configuration of the Box, None if there is none that can be read, and what to say."""
    if file is None:
        return None, {}
    try:
        config = load(file, flags={"nats": flags})
    except ConfigError as exc:
        cure = "mend it; this host and its Box's rights are not looked at until then"
        return None, {"config": fail(str(exc), cure)}
    return config, {"config": host_checks.configuration(config)}


@contextlib.asynccontextmanager
async def _connected(settings: NatsConfig) -> AsyncIterator[tuple[Connection | None, Finding]]:
    """A connection, None if there is none to be had, and what to say of it."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            connection = await stack.enter_async_context(
                Connection.open(settings, name="box-bridge doctor", patience=_CONNECT)
            )
        except ConfigError as exc:
            yield None, fail(str(exc), "mend the file or the setting")
        except ConnectFailed as exc:
            urls = without_secret(", ".join(exc.urls))
            yield None, fail(f"no connection to {urls}: {exc.reason}", _cure(exc.reason))
        else:
            yield connection, await _judged(lambda: bus_checks.server(connection))


def _of_bus(connection: Connection | None, config: Config | None, clock: Clock) -> dict[str, Check]:
    """The checks that need a connection."""
    if connection is None:
        names = ("jetstream", "permissions", "topology", "clock")
        return dict.fromkeys(names, _without_connection)
    host, timing = (config.box.name, config.timing) if config else ("", None)
    return {
        "jetstream": lambda: bus_checks.jetstream(connection),
        "permissions": lambda: bus_checks.rights(connection, host),
        "topology": lambda: bus_checks.streams(connection, timing),
        "clock": lambda: bus_checks.clock(connection, clock),
    }


async def _without_connection() -> Finding:
    return skip("not looked at: there is no connection to NATS")


def _of_host(config: Config) -> dict[str, Check]:
    """The checks of this machine. They block, so each has a thread."""
    return {
        "disk": lambda: _in_thread(lambda: host_checks.disk(config.data_dir)),
        "journal": lambda: _in_thread(lambda: host_checks.journal(config.data_dir)),
        "runtime": lambda: _in_thread(lambda: host_checks.runtime(config)),
        "ports": lambda: _in_thread(lambda: host_checks.ports(config)),
    }


async def _all(checks: Mapping[str, Check]) -> dict[str, Finding]:
    """What each of the checks finds, all at once, in their order."""
    async with task_scope() as tasks:
        running = {name: tasks.create_task(_judged(check)) for name, check in checks.items()}
        return {name: await task for name, task in running.items()}


async def _judged(check: Check) -> Finding:
    """What the check finds; that it raises, or takes too long, is a finding too."""
    try:
        async with asyncio.timeout(_DEADLINE):
            return await check()
    except TimeoutError:
        return fail(f"no answer within {_DEADLINE:g} s", "look whether NATS and the disk answer")
    except (CutOff, NoReply) as exc:
        return fail(str(exc), "look how NATS is: `nats server check jetstream`, and its log")
    except (BridgeError, OSError) as exc:
        says, _, cure = str(exc).partition(": ")
        return fail(says, cure or "see the other checks")


async def _in_thread(work: Callable[[], Finding]) -> Finding:
    """What `work` finds, in a thread that nobody waits for at the end: a disk may hang for good."""
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
        except Exception as exc:  # raised where it is waited for
            error = exc
        with contextlib.suppress(RuntimeError):  # nobody waits any more
            loop.call_soon_threadsafe(deliver, finding, error)

    threading.Thread(target=run, name="check", daemon=True).start()
    return await done


def _cure(reason: str) -> str:
    """What to do when no server took the connection, as it or the system says."""
    if "authorization" in reason.lower() or "authentication" in reason.lower():
        return (
            "check the credentials: [nats] creds, nkey, user and password, token, or NATS_… in the "
            "environment"
        )
    if "certificate" in reason or "TLS" in reason or "ssl" in reason.lower():
        return "check [nats] ca, cert and key, and whether the URL is tls:// where it must be"
    return "start it (`box-bridge up` runs one), or correct [nats] url, NATS_URL or --server"


def _line(told: ReportLine) -> Text:
    line = Text(f"{told.status:<5}", style=_STYLES[told.status])
    line.append(f"{told.check:<{_WIDTH}}  ", style="bold")
    says = f"{told.says}. Cure: {told.cure}" if told.cure else told.says
    return line.append(says.replace("\n", " "), style="default")
