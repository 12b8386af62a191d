"""Three real nats-servers that form a cluster on this machine."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import nats.errors
import nats.js.errors
from nats.js.api import StreamConfig

from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream.api import jetstream
from tests.support import connect, eventually, free_ports

_NAMES = ("one", "two", "three")


class Cluster:
    """The servers by name; `url` names them all."""

    def __init__(self, servers: dict[str, EmbeddedServer]) -> None:
        self.servers = servers

    @property
    def url(self) -> str:
        return ",".join(server.url for server in self.servers.values())

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, directory: Path) -> AsyncIterator[Cluster]:
        """A cluster whose JetStream takes replicated streams."""
        routes = free_ports(len(_NAMES))
        servers = {
            name: EmbeddedServer(
                directory / name, config=_config(directory, name, port, routes), patience=20.0
            )
            for name, port in zip(_NAMES, routes, strict=True)
        }
        async with contextlib.AsyncExitStack() as stack:
            for server in servers.values():
                await stack.enter_async_context(server)
            cluster = cls(servers)
            async with connect(cluster.url) as probe:
                await eventually(lambda: _replicates(probe), what="the cluster replicates")
            yield cluster

    async def leader(self, connection: Connection, stream: str) -> EmbeddedServer:
        """The server that leads `stream` now."""
        info = await jetstream(connection).stream_info(stream)
        assert info.cluster is not None
        return self.servers[info.cluster.leader or ""]


def _config(directory: Path, name: str, port: int, routes: list[int]) -> Path:
    file = directory / f"{name}.conf"
    listed = ", ".join(f'"nats://127.0.0.1:{route}"' for route in routes)
    file.write_text(
        f"""
server_name: {name}
jetstream {{ sync_interval: always }}
ping_interval: "2s"
ping_max: 2
cluster {{ name: fleet, listen: "127.0.0.1:{port}", routes: [{listed}] }}
"""
    )
    return file


async def _replicates(probe: Connection) -> bool:
    config = StreamConfig(name="probe", subjects=["probe"], num_replicas=len(_NAMES))
    with contextlib.suppress(nats.errors.Error, TimeoutError):
        await jetstream(probe).add_stream(config)
        await jetstream(probe).delete_stream("probe")
        return True
    await asyncio.sleep(0.2)  # a leader is being elected
    return False
