"""A running Box for a test, and how to look at what it runs."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bridge.box.daemon import Box
from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.protocol import (
    InstanceEvent,
    InstanceInfo,
    InstancesRequest,
    InstancesResponse,
    InstanceState,
    decode,
    encode,
)
from tests.paths import HTTP_SERVICE
from tests.support import Recorder, box_config, connect, eventually, service_table

S = InstanceState


@asynccontextmanager
async def boxed(
    server: EmbeddedServer, tmp_path: Path, *services: str, **settings: Any
) -> AsyncIterator[tuple[Connection, Recorder]]:
    """A ready Box, a gateway's connection to it, and everything that it publishes."""
    config = box_config(tmp_path, server.url, *services, **settings)
    async with connect(server.url) as gateway:
        recorder = await Recorder.listening(gateway)
        async with Box.running(config):
            yield gateway, recorder
        await gateway.flush()  # everything that the Box published has arrived
        recorder.check_chains()


async def instances(gateway: Connection, service: str = "") -> list[InstanceInfo]:
    message = await gateway.request("box.instances", encode(InstancesRequest(service=service)))
    return decode(InstancesResponse, message.data).instances


def gated(door: Path, otherwise: str) -> str:
    """A service `web` that serves if there is a `door` when it starts, else does `otherwise`."""
    serve = f'exec {sys.executable} -S -E {HTTP_SERVICE} "$PORT"'
    script = f"test -e {door} && {serve}; {otherwise}"
    return service_table("web", command=["sh", "-c", script])


async def serving(gateway: Connection, service: str, count: int) -> list[InstanceInfo]:
    """The service's instances, once exactly so many are there and all serve."""

    async def all_there() -> list[InstanceInfo] | None:
        found = await instances(gateway, service)
        there = len(found) == count and all(i.state in (S.READY, S.BUSY) for i in found)
        return found or [None] if there else None  # type: ignore[list-item]

    found = await eventually(all_there, what=f"{count} instances of {service} serve")
    return found if count else []


async def fetch(info: InstanceInfo, path: str = "/") -> Any:
    def get() -> Any:
        with urllib.request.urlopen(f"http://{info.endpoint}{path}", timeout=20) as response:
            return json.loads(response.read())

    return await asyncio.to_thread(get)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def gone(pid: int) -> None:
    """Return when the process is no more."""
    await eventually(lambda: not alive(pid), what=f"process {pid} is gone")


async def first_failure(recorder: Recorder) -> InstanceEvent:
    """The first event that says Failed, once there is one."""
    return await eventually(
        lambda: next((e for _, e in recorder.events if e.to_state is S.FAILED), None),
        what="an instance fails",
    )


def labelled(label: str) -> list[int]:
    """The living processes of the instance whose logs are in the directory `label`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            environ = (entry / "environ").read_bytes()
        except OSError:
            continue
        if f"BOX_INSTANCE_DIR={label}/files\0".encode() in environ:
            found.append(int(entry.name))
    return found
