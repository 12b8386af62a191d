"""A Box in a process of its own, for rows that need one: ``python -m bridge.bench.host``.

It reads its configuration as one line of JSON and prints a line when it is ready. When its stdin
ends, however its owner ends, it drains its instances and ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from typing import Final

import msgspec

from bridge.bench.row import Site
from bridge.bus.core.connection import Connection
from bridge.errors import ServerNotStarted
from bridge.gateway.client import ScaleClient
from bridge.observe import configure_logging
from bridge.settings import BoxConfig, Config, Probe, ServiceConfig

_PATIENCE: Final = 60.0  # seconds until a Box is ready

# Listens, and hangs up on whoever calls: what starts faster than this is no service.
_SERVICE: Final = (
    "import socket,sys\n"
    "server=socket.create_server(('127.0.0.1',int(sys.argv[1])))\n"
    "while True: server.accept()[0].close()"
)

_SELDOM: Final = Probe(tcp=True, interval=600.0)  # probes are not what most rows measure


def service(probe: Probe) -> ServiceConfig:
    """A service whose instances start and end at once, and do nothing else."""
    return ServiceConfig(
        command=[sys.executable, "-I", "-S", "-c", _SERVICE, "{port}"],
        probe=probe,
        deregister_delay=0.0,
        drain_timeout=0.0,
        stop_grace=1.0,
    )


@contextlib.asynccontextmanager
async def fleet(
    site: Site,
    *,
    most: int,
    name: str = "bench",
    probe: Probe = _SELDOM,
    started: Callable[[int], object] = lambda pid: None,
) -> AsyncIterator[ScaleClient]:
    """Run a Box for up to `most` instances of the service ``web``; yields a client. `started` is
    called with the pid of the Box.
    """
    config = Config(
        box=BoxConfig(
            name=name,
            max_instances=most,
            data_dir=str(site.directory / name),
            ports=f"{_FIRST_PORT}-{_FIRST_PORT + most * 2 + 10}",
            on_exit="drain",
        ),
        nats=site.nats,
        services={"web": service(probe)},
        directory=site.directory,
        environ={"PATH": "/usr/bin:/bin"},
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bridge.bench.host"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # a Ctrl-C is for the owner
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(msgspec.json.encode(config, enc_hook=str) + b"\n")
        async with asyncio.timeout(_PATIENCE):
            if not await process.stdout.readline():
                raise ServerNotStarted("the Box that is measured ended by itself")
        started(process.pid)
        async with site.connect() as connection:
            yield _client(connection)
    finally:
        process.stdin.close()
        await process.wait()


_FIRST_PORT: Final = 27000


def _client(connection: Connection) -> ScaleClient:
    return ScaleClient(connection)


async def _serve(config: Config) -> None:
    from bridge.box.daemon import Box

    configure_logging("error")
    async with Box.running(config):
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(
        _serve(msgspec.json.decode(sys.stdin.readline(), type=Config, dec_hook=lambda t, v: t(v)))
    )
