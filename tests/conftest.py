"""Fixtures: a real nats-server for each test that asks for one, and real podman."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import os
import resource
import signal
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import Final, TextIO

import psutil
import pytest
from hypothesis import HealthCheck, settings

from bridge.bus.embedded_server import EmbeddedServer
from bridge.config import nats_context
from tests.podman import Podman

# Examples may take long on a machine that others use, which `deadline=None` allows.
_SHARED: Final = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", _SHARED, max_examples=25)
settings.register_profile("full", _SHARED, max_examples=400)
_HANGS: Final = 270  # seconds: shorter than the `timeout` in pyproject.toml
_STDERR: Final = pytest.StashKey[TextIO]()
settings.load_profile("quick")  # `make test-all` has --hypothesis-profile=full


def pytest_configure(config: pytest.Config) -> None:
    """Let the programs that tests start receive Ctrl-C and the end of a terminal, even if the tests
    run in the background or under `nohup`.
    """
    # Nothing is captured yet.
    config.stash[_STDERR] = os.fdopen(os.dup(2), "w", buffering=1)
    # No test reads a context of the nats CLI that the developer has selected.
    nowhere = tempfile.mkdtemp(prefix="bb-home-")
    os.environ["XDG_CONFIG_HOME"] = nowhere
    nats_context.account_home = lambda: nowhere
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Print where a test hangs, before pytest-timeout ends its worker without a word."""
    timer = threading.Timer(_HANGS, _print_stacks, [item])
    timer.daemon = True
    timer.start()
    try:
        return (yield)
    finally:
        timer.cancel()


def _print_stacks(item: pytest.Item) -> None:
    stderr = item.config.stash[_STDERR]
    print(f"{item.nodeid} takes longer than {_HANGS} s", file=stderr)
    faulthandler.dump_traceback(stderr)
    for task in gc.get_objects():
        if isinstance(task, asyncio.Task) and not task.done():
            print(task, file=stderr)
            task.print_stack(file=stderr)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape lone surrogates in captured output, which end a worker of xdist that sends them."""
    report = yield
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the run took: every process that was waited for is counted."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    processor = sum(usage.ru_utime + usage.ru_stime for usage in used)
    wall = time.time() - psutil.Process().create_time()
    terminalreporter.write_line(
        f"processor (user + system, all processes): {processor:.0f} s; wall: {wall:.0f} s"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that uses podman as slow."""
    for item in items:
        if isinstance(item, pytest.Function) and "podman" in item.fixturenames:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    """A nats-server of the test's own, on a free port, with an empty store."""
    async with EmbeddedServer(tmp_path / "nats") as running:
        yield running


@pytest.fixture
def unused_port() -> int:
    """A port on which no process listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture(scope="session")
def podman_store() -> Iterator[Podman | str]:
    """Podman with an image, for all tests of this process; or why there is none."""
    # A short path: conmon's sockets lie beneath it, whose names have 108 letters at most.
    podman = Podman(Path(tempfile.mkdtemp(prefix="bb-")))
    try:
        yield podman.install() or podman
    finally:
        podman.destroy()


@pytest.fixture
def podman(podman_store: Podman | str) -> Iterator[Podman]:
    """Podman without any container; the test is skipped where podman cannot run."""
    if isinstance(podman_store, str):
        pytest.skip(podman_store)
    yield podman_store
    podman_store.remove_all()
