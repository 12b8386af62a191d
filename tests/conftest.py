"""Fixtures: a real nats-server for each test that asks for one, and real podman."""

from __future__ import annotations

import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from bridge.bus.embedded_server import EmbeddedServer
from tests.podman import Podman


def pytest_configure() -> None:
    """Examples may take long on a machine that others use. Programs started here hear Ctrl-C, even
    if a shell runs the tests in the background.
    """
    settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("shared")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes podman is not quick."""
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
    """A port that nobody listens on."""
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
