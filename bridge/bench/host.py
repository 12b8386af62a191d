"""A Box in a process of its own, for rows that need one: ``python -m bridge.bench.host``.

Its task is its configuration. It drains its instances when it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from typing import Final

import msgspec

from bridge.bench import child
from bridge.bench.row import Site
from bridge.gateway.client import ScaleClient
from bridge.observe import configure_logging
from bridge.settings import BoxConfig, Config, Probe, ServiceConfig

_PATIENCE: Final = 60.0  # seconds until a Box is ready
_FIRST_PORT: Final = 27000

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
    task = msgspec.json.encode(config, enc_hook=str)
    what = "the Box that is measured"
    async with child.running("bridge.bench.host", task, what=what, patience=_PATIENCE) as pid:
        started(pid)
        async with site.connect() as connection:
            yield ScaleClient(connection)


async def _serve(config: Config) -> None:
    from bridge.box.daemon import Box

    configure_logging("error")
    async with Box.running(config):
        await child.serve_owner()


if __name__ == "__main__":
    asyncio.run(
        _serve(msgspec.json.decode(sys.stdin.readline(), type=Config, dec_hook=lambda t, v: t(v)))
    )
