"""What tests share: a configuration, services to run, and waiting for things to come true."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar, overload

from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.config import load
from bridge.protocol import InstanceEvent, ScaleRequest, ScaleResponse, decode, encode
from bridge.settings import Config, NatsConfig
from bridge.tasks import task_scope
from tests.paths import HTTP_SERVICE

T = TypeVar("T")

_LOOK = 0.01  # seconds between looks at a condition
_PATIENCE = 60.0  # seconds: long enough beside a busy loop on each core


@overload
async def eventually(
    condition: Callable[[], Awaitable[T | None]], *, within: float = _PATIENCE, what: str = ""
) -> T: ...
@overload
async def eventually(
    condition: Callable[[], T | None], *, within: float = _PATIENCE, what: str = ""
) -> T: ...
async def eventually(
    condition: Callable[[], Any], *, within: float = _PATIENCE, what: str = ""
) -> Any:
    """The first true value of `condition`; fails when there was none within so many seconds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    while True:
        found = condition()
        value = await found if inspect.isawaitable(found) else found
        if value:
            return value
        if loop.time() > deadline:
            raise AssertionError(f"not within {within:g} s: {what or inspect.getsource(condition)}")
        await asyncio.sleep(_LOOK)


def command(*arguments: str) -> list[str]:
    """What starts the test service."""
    return [sys.executable, "-S", "-E", str(HTTP_SERVICE), "{port}", *arguments]


def service_table(name: str, *arguments: str, **settings: object) -> str:
    """A ``[services.<name>]`` table that runs the test service, quick to go."""
    values: dict[str, object] = {
        "command": command(*arguments),
        "probe": {"http": "/", "timeout": 10.0},
        "deregister_delay": 0.1,
        "drain_timeout": 5.0,
        "stop_grace": 2.0,
        "request_env": ["A", "B", "GREETING", "KEY", "LEVEL", "OK"],
    }
    lines = [f"{key} = {_toml(value)}" for key, value in {**values, **settings}.items()]
    return "\n".join([f"[services.{name}]", *lines])


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)


WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8
FIRST_PORT = 12000 + 1500 * WORKER
"""Tests that run side by side take no ports from one another, nor those that a Box takes unless it
is told others, or the demo, or a bench.
"""
PORTS = f"{FIRST_PORT}-{FIRST_PORT + 1499}"

TIMING = """
[timing]
sample = 0.1
idle_samples = 3
backoff_first = 0.2
backoff_max = 1.0
registration_renew = 0.5
heartbeat = 0.5
lease = 3
decide_timeout = 10.0
"""
"""Short times where a test waits for one, long ones where a busy machine would exceed them."""


def box_config(
    directory: Path,
    url: str,
    *services: str,
    name: str = "box-a",
    max_instances: int = 10,
    ports: str = PORTS,
    timing: str = TIMING,
    on_exit: str = "drain",
    more: str = "",
    replicas: int = 1,
) -> Config:
    """A Box's configuration, by way of a real file."""
    file = directory / f"{name}.toml"
    file.write_text(
        f"""
[box]
name = "{name}"
max_instances = {max_instances}
data_dir = "data-{name}"
on_exit = "{on_exit}"
ports = "{ports}"
request_ports = "1024-65535"
{more}

[nats]
url = "{url}"
replicas = {replicas}
{timing}
"""
        + "\n".join(services or (service_table("web"),))
    )
    return load(file, environ={"PATH": "/usr/bin:/bin"})


class ServiceManager:
    """A service manager, and the lines that it has received: see sd_notify(3)."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    async def listen(self, inbox: socket.socket) -> None:
        while True:
            datagram = await asyncio.get_running_loop().sock_recv(inbox, 4096)
            self.lines += datagram.decode().splitlines()

    async def notified(self, start: str) -> str:
        """The first line that starts like this and is new, once there is one."""
        line = await eventually(
            lambda: next((line for line in self.lines if line.startswith(start)), None),
            what=f"{start} is told; so far: {self.lines}",
        )
        self.lines.remove(line)
        return line


@contextlib.asynccontextmanager
async def listening(address: str) -> AsyncIterator[ServiceManager]:
    """A service manager that listens at `address`, as NOTIFY_SOCKET has it."""
    manager = ServiceManager()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inbox:
        inbox.setblocking(False)
        inbox.bind(address.replace("@", "\0") if address.startswith("@") else address)
        async with task_scope() as tasks:
            tasks.create_task(manager.listen(inbox))
            yield manager


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, all of them different."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [probe.getsockname()[1] for probe in probes]


def connect(url: str, **settings: Any) -> Any:
    """A connection for a test: ``async with connect(url) as connection``."""
    patience = 20.0  # seconds: a busy machine may need them
    return Connection.open(NatsConfig(url=url, **settings), name="test", patience=patience)


async def ask(
    connection: Connection,
    service: str,
    replicas: int,
    *,
    timeout: float = _PATIENCE,
    **fields: Any,
) -> ScaleResponse:
    """What a Box answers to a plain request."""
    reply = await ask_for_reply(connection, service, replicas, timeout=timeout, **fields)
    return decode(ScaleResponse, reply.data)


async def ask_for_reply(
    connection: Connection,
    service: str,
    replicas: int,
    *,
    timeout: float = _PATIENCE,
    **fields: Any,
) -> Message:
    """A Box's reply to a plain request, with its headers."""
    headers = fields.pop("headers", None)
    request = ScaleRequest(service=service, replicas=replicas, **fields)
    return await connection.request(
        connection.subjects.scale, encode(request), headers=headers, timeout=timeout
    )


class Recorder:
    """Every event and registration that crosses the bus, in the order of arrival.

    A core subscriber gets each event at least once; the very same one again is left out.
    """

    def __init__(self) -> None:
        self.events: list[tuple[int, InstanceEvent]] = []
        self.messages: list[Message] = []

    @classmethod
    async def listening(cls, connection: Connection) -> Recorder:
        recorder = cls()
        await connection.listen(connection.subjects.all_events, recorder._take_event)
        for subject in connection.subjects.all_registrations:
            await connection.listen(subject, recorder.messages.append)
        await connection.flush()
        return recorder

    def _take_event(self, message: Message) -> None:
        if "Box-Seq" not in message.headers:
            return  # a test's own vandalism
        told = int(message.headers["Box-Seq"]), decode(InstanceEvent, message.data)
        if told not in self.events:
            self.events.append(told)
            self.messages.append(message)

    def of(self, instance_id: str) -> list[InstanceEvent]:
        """The events of one instance."""
        return [event for _, event in self.events if event.instance_id == instance_id]

    def states(self, instance_id: str) -> list[str]:
        """The states that one instance went to."""
        return [event.to_state.value for event in self.of(instance_id)]

    async def reached(self, instance_id: str, state: str) -> list[str]:
        """The states that the instance went to, once it has gone to `state`."""
        await eventually(
            lambda: self.states(instance_id)[-1:] == [state],
            what=f"{instance_id} is {state}: {self.states(instance_id)}",
        )
        return self.states(instance_id)

    def check_chains(self) -> None:
        """Every instance's events start at Creating, fit together, and are numbered 1, 2, 3 …"""
        last: dict[str, tuple[int, str]] = {}
        for seq, event in self.events:
            before, state = last.get(event.instance_id, (0, "Creating"))
            assert seq == before + 1, f"{event.instance_id}: Box-Seq {seq} after {before}"
            assert event.from_state.value == state, f"{event} after {state}"
            last[event.instance_id] = (seq, event.to_state.value)


def calls(work: Callable[[], object]) -> int:
    """How many functions are called while `work` is done."""
    count = 0

    def see(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    gc.disable()  # a collection calls finalizers, and Hypothesis's callbacks
    sys.setprofile(see)
    try:
        work()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count
