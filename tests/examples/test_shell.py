"""The four lines of shell that register a server, and the NATS user that may do that alone."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from bridge import register
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.errors import NotPermitted
from bridge.protocol import InstanceDeregistration, InstanceRegistration, decode
from tests.paths import EXAMPLES, REPOSITORY
from tests.support import Recorder, connect, eventually

NATS = f"""#!{sys.executable}
# In place of the nats CLI: `nats pub [-H NAME:VALUE] SUBJECT BODY`, and nothing else.
import argparse, asyncio, os, sys
sys.path.insert(0, {str(REPOSITORY)!r})
from bridge.bus.core.connection import Connection
from bridge.settings import NatsConfig

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("verb", choices=["pub"])
parser.add_argument("-H", "--header", action="append", default=[])
parser.add_argument("subject")
parser.add_argument("body")
given = parser.parse_args()

async def publish():
    settings = NatsConfig(url=os.environ["NATS_URL"])
    async with Connection.open(settings, name="nats") as connection:
        headers = dict(header.split(":", 1) for header in given.header)
        connection.publish(given.subject, given.body.encode(), headers=headers)

asyncio.run(publish())
"""


async def test_four_lines_of_shell_register_a_server_and_withdraw_it_when_it_ends(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    lines = (EXAMPLES / "register.sh").read_text().splitlines()
    assert len(lines) == 4
    program = tmp_path / "bin" / "nats"
    program.parent.mkdir()
    program.write_text(NATS)
    program.chmod(0o755)
    async with connect(server.url) as connection:
        await topology.ensure(connection)
        recorder = await Recorder.listening(connection)
        with subprocess.Popen(["sleep", "3600"]) as served:
            (tmp_path / "server.pid").write_text(str(served.pid))
            shell = await asyncio.create_subprocess_exec(
                *("/bin/sh", "-c", "\n".join(lines).replace("sleep 10", "sleep 0.1")),
                cwd=tmp_path,
                env={"PATH": f"{program.parent}:/usr/bin:/bin", "NATS_URL": server.url},
                stderr=asyncio.subprocess.DEVNULL,
            )
            await eventually(lambda: len(recorder.messages) >= 2, within=20)
            served.kill()
        assert await shell.wait() == 0
        await eventually(lambda: ".deregister." in recorder.messages[-1].subject)
        *announced, withdrawn = recorder.messages
        first = decode(InstanceRegistration, announced[0].data)
        assert (first.service, first.endpoint) == ("web", "10.0.0.5:8080")
        assert {message.subject for message in announced} == {
            f"box.register.web.{first.instance_id}"
        }
        assert {message.headers["Nats-TTL"] for message in announced} == {"30"}
        gone = decode(InstanceDeregistration, withdrawn.data)
        assert withdrawn.subject == f"box.deregister.web.{first.instance_id}"
        assert (gone.instance_id, gone.reason) == (first.instance_id, "it has ended")


async def test_the_user_for_instances_may_register_its_own_service_alone(tmp_path: Path) -> None:
    file = tmp_path / "nats.conf"
    text = (EXAMPLES / "instance-user.conf").read_text()
    file.write_text(text.replace("$BOX_PASSWORD", "b").replace("$WEB_PASSWORD", "w"))
    async with (
        EmbeddedServer(tmp_path / "nats", config=file) as server,
        connect(server.url, user="box", password="b") as gateway,
        connect(server.url, user="web", password="w") as connection,
    ):
        await topology.ensure(gateway)
        recorder = await Recorder.listening(gateway)
        reports: list[object] = []
        await gateway.listen("box.health.web.*", reports.append)
        await gateway.flush()
        async with (
            register(service="web", endpoint="a:1", connection=connection) as registration,
            registration.request(),
        ):
            await eventually(lambda: reports)
        await eventually(lambda: len(recorder.messages) == 2)
        assert ".deregister.web." in recorder.messages[1].subject
        with pytest.raises(NotPermitted):
            async with register(service="api", endpoint="a:1", connection=connection):
                pytest.fail("it was taken")
