"""The servers that `auth init` configures: a cluster, and a leaf node, with the fleet's users."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.js.api import ConsumerConfig

from bridge.auth.directory import AuthDirectory
from bridge.auth.roles import Role
from bridge.auth.site import plan_site
from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.api import jetstream
from bridge.bus.jetstream.publish import store
from bridge.bus.server_binary import find_binary
from bridge.config import load_nats
from bridge.errors import BusError, NotPermitted
from tests.support import eventually, free_ports

NAMES = ("one", "two", "three")


@contextlib.asynccontextmanager
async def connected(users: AuthDirectory, name: str, url: str) -> AsyncIterator[Connection]:
    flags = {"context": str(users.context_file(name)), "url": url}
    async with Connection.open(
        load_nats(flags=flags, environ={}), name="test", patience=20
    ) as connection:
        yield connection


async def created(box: Connection, replicas: int) -> bool:
    with contextlib.suppress(BusError):  # no leader yet, or no route to it
        await topology.ensure(box, replicas=replicas)
        return True
    return False


async def works(users: AuthDirectory, box: Connection, url: str) -> None:
    """Users at `url` ask a Box, read events and are denied what is another's."""

    def answer(message: Message) -> None:
        box.publish(message.reply, b"answered")

    await box.listen(box.subjects.scale, answer, queue="box")
    await box.flush()
    await store(box, "box.events.web", b"{}")
    async with connected(users, "operator", url) as operator:

        async def answered() -> bool:
            with contextlib.suppress(BusError):  # the interest spreads
                reply = await operator.request(operator.subjects.scale, b"{}", timeout=1)
                return reply.data == b"answered"
            return False

        await eventually(answered)
        with pytest.raises(NotPermitted):
            await operator.request("box.events.web", b"{}")
    async with connected(users, "mailer", url) as mailer:
        js = jetstream(mailer)
        await js.add_consumer("BOX_EVENTS", ConsumerConfig(durable_name="mailer"))
        assert (await js.consumer_info("BOX_EVENTS", "mailer")).num_pending >= 1


@pytest.mark.slow
@pytest.mark.parametrize("operator", [False, True], ids=["nkeys", "jwt"])
async def test_a_cluster_serves_the_users_of_the_fleet_and_no_foreign_route(
    tmp_path: Path, operator: bool
) -> None:
    users = AuthDirectory(tmp_path / "auth")
    ports = dict(zip(NAMES, free_ports(len(NAMES)), strict=True))
    listed = ",".join(f"{name}=127.0.0.1:{port}" for name, port in ports.items())
    users.create(plan_site(prefix="box", hosts=["box-a"], cluster=listed, operator=operator))
    users.add(Role.DURABLE, "mailer")
    async with contextlib.AsyncExitStack() as stack:
        servers = [
            EmbeddedServer(tmp_path / name, config=users.path / f"{name}.conf", patience=20)
            for name in NAMES
        ]
        for server in servers:
            await stack.enter_async_context(server)
        box = await stack.enter_async_context(connected(users, "box-a", servers[0].url))
        await eventually(lambda: created(box, 3))
        await works(users, box, servers[1].url)
        foreign = tmp_path / "foreign.conf"
        route = f'"nats-route://127.0.0.1:{ports["one"]}"'
        foreign.write_text(
            "server_name: x, jetstream {}, "
            f'cluster {{ name: box, listen: "127.0.0.1:-1", routes: [{route}] }}'
        )
        async with EmbeddedServer(tmp_path / "foreign", config=foreign):
            log = servers[0].log_file
            await eventually(lambda: "authentication error" in log.read_text().lower())


@pytest.mark.slow
@pytest.mark.parametrize("operator", [False, True], ids=["nkeys", "jwt"])
async def test_a_leaf_node_serves_the_users_near_it_with_the_rights_of_their_roles(
    tmp_path: Path, operator: bool, unused_port: int
) -> None:
    users = AuthDirectory(tmp_path / "auth")
    users.create(plan_site(prefix="box", hosts=["box-a"], leaves=["edge-1"], operator=operator))
    users.add(Role.DURABLE, "mailer")
    hub, leaf = users.path / "nats-server.conf", users.leaf_file("edge-1")
    for file in (hub, leaf):
        file.write_text(file.read_text().replace("7422", str(unused_port)))
    async with (
        EmbeddedServer(tmp_path / "hub", config=hub) as server,
        running(tmp_path / "leaf", leaf) as url,
        connected(users, "box-a", url) as box,
    ):
        await eventually(lambda: created(box, 1))
        await works(users, box, url)
        await works(users, box, server.url)
        async with connected(users, "operator", url) as operator_near:
            request = operator_near.request("box.register.web.web-1", b"{}")
            with pytest.raises(NotPermitted):
                await request


@contextlib.asynccontextmanager
async def running(directory: Path, config: Path) -> AsyncIterator[str]:
    """The URL of a nats-server with `config`, which has no JetStream."""
    directory.mkdir()
    command = [str(find_binary()), "-c", str(config), "-a", "127.0.0.1", "-p", "-1"]
    command += ["-l", str(directory / "log"), "--ports_file_dir", str(directory)]
    process = subprocess.Popen(command, cwd=config.parent)
    try:
        ports = await eventually(lambda: next(iter(directory.glob("*.ports")), None))
        yield (await eventually(lambda: json.loads(ports.read_text() or "null")))["nats"][0]
    finally:
        process.terminate()
        process.wait()
