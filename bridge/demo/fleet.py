"""The demo's second part: three hosts share a service, one dies, one is drained for maintenance."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp

from bridge.box.state.lifecycle import SERVING
from bridge.demo.host import service_command
from bridge.demo.narration import PATIENCE, Narration, alive, expect, get
from bridge.gateway.client import ScaleClient
from bridge.gateway.errors import ScaleError
from bridge.gateway.operator import Operator
from bridge.gateway.routes.index import Route
from bridge.gateway.routes.table import RouteTable
from bridge.protocol import InstancesResponse
from bridge.settings import NatsConfig
from bridge.tasks import task_scope

_HOSTS = ("box-a", "box-b", "box-c")
_REPLICAS = 6
_PREFIX = "fleet"  # a fleet of its own on the same server
_LEASE = 3  # seconds; the default is 10
_LOOK = 0.05
_SURE = 12  # consecutive answers that must agree: each Box has its own view, and any answers

_CONFIG = """
[box]
name = "{name}"
max_instances = 10
data_dir = "{name}"
ports = "{first}-{last}"
on_exit = "drain"

[nats]
url = "{url}"
prefix = "{prefix}"

[timing]
lease = {lease}
heartbeat = 0.5

[services.web]
command = [{command}, "{{port}}"]
probe = {{ http = "/" }}
deregister_delay = 0.5
"""


class FleetDemo:
    """Runs its steps on the server at `url`, in `directory`; each raises StepFailed."""

    def __init__(self, narration: Narration, url: str, directory: Path) -> None:
        self._narration = narration
        self._url = url
        self._directory = directory
        self._boxes: dict[str, subprocess.Popen[bytes]] = {}
        self._pids: dict[str, int] = {}

    async def run(self) -> None:
        """All steps, until one fails."""
        try:
            async with self._everything() as (client, table, http):
                await self._spread(client, http)
                await self._lose_a_host(client, table, http)
                await self._drain_a_host(client, table, http)
                await self._stop(client)
        finally:
            for box in self._boxes.values():
                box.kill()
                box.wait()
            for pid in filter(alive, self._pids.values()):
                os.kill(pid, signal.SIGKILL)

    @contextlib.asynccontextmanager
    async def _everything(
        self,
    ) -> AsyncIterator[tuple[ScaleClient, RouteTable, aiohttp.ClientSession]]:
        async with contextlib.AsyncExitStack() as stack:
            settings = NatsConfig(url=self._url, prefix=_PREFIX)
            client = await stack.enter_async_context(
                ScaleClient.connect(settings=settings, name="demo")
            )
            async with self._narration.step("Three Boxes are up, each a process of its own"):
                for number, name in enumerate(_HOSTS):
                    self._start(name, number)
                await _eventually(lambda: self._live(client, len(_HOSTS)), "three live hosts")
            http = await stack.enter_async_context(aiohttp.ClientSession())
            table = await stack.enter_async_context(RouteTable.open(client.connection, "web"))
            tasks = await stack.enter_async_context(task_scope())
            events = await stack.enter_async_context(client.events())
            tasks.create_task(self._narration.follow(events))
            yield client, table, http

    # ── the steps ────────────────────────────────────────────────────────────────────────

    async def _spread(self, client: ScaleClient, http: aiohttp.ClientSession) -> None:
        async with self._narration.step(f"web 0 → {_REPLICAS}: two on each host") as details:
            await client.scale("web", _REPLICAS, wait=True, timeout=PATIENCE)
            where = await self._where(client, http)
            expect(where == dict.fromkeys(_HOSTS, 2), f"they are on {where}")
            details.append(_format(where))

    async def _lose_a_host(
        self, client: ScaleClient, table: RouteTable, http: aiohttp.ClientSession
    ) -> None:
        name = "box-b dies with all it runs: its slots run elsewhere, and every request is answered"
        async with self._narration.step(name) as details, _Load.through(table, http) as load:
            seen = await self._settled(client)
            self._boxes["box-b"].kill()
            for instance, host in seen.hosts.items():
                if host == "box-b":
                    os.kill(self._pids[instance], signal.SIGKILL)

            async def elsewhere() -> bool:
                hosts = (await client.observe("web")).hosts
                return len(hosts) == _REPLICAS and "box-b" not in hosts.values()

            await _eventually(elsewhere, "its slots run elsewhere", within=_LEASE + 5)
            await client.wait_ready("web", _REPLICAS, timeout=PATIENCE)
            where = await self._where(client, http)
            details.append(f"{_format(where)}; {load.check()}")

    async def _drain_a_host(
        self, client: ScaleClient, table: RouteTable, http: aiohttp.ClientSession
    ) -> None:
        async with self._narration.step("box-b returns: nothing moves because of that"):
            before = (await self._settled(client)).hosts
            self._start("box-b", 1)
            await _eventually(lambda: self._live(client, len(_HOSTS)), "three live hosts")
            expect((await self._settled(client)).hosts == before, "something has moved")
        name = "box-a is drained: each replaced before it goes, and no request fails"
        async with self._narration.step(name) as details, _Load.through(table, http) as load:
            await Operator(client.connection).drain("box-a", timeout=PATIENCE)
            where = await self._where(client, http)
            expect(where.keys() == {"box-b", "box-c"}, f"they are on {where}")
            details.append(f"{_format(where)}; {load.check(retried=0)}")

    async def _stop(self, client: ScaleClient) -> None:
        async with self._narration.step("All is stopped in order, and nothing is left behind"):
            await client.scale("web", 0, wait=True, timeout=PATIENCE)
            for box in self._boxes.values():
                box.terminate()
            for box in self._boxes.values():
                await asyncio.to_thread(box.wait, PATIENCE)
            left = [pid for pid in self._pids.values() if alive(pid)]
            expect(not left, f"processes {left} are still there")

    # ── the hosts ────────────────────────────────────────────────────────────────────────

    def _start(self, name: str, number: int) -> None:
        file = self._directory / f"{name}.toml"
        first = 24000 + 100 * number
        file.write_text(
            _CONFIG.format(
                name=name,
                first=first,
                last=first + 99,
                url=self._url,
                prefix=_PREFIX,
                lease=_LEASE,
                command=service_command(),
            )
        )
        with (self._directory / f"{name}.log").open("ab") as log:
            self._boxes[name] = subprocess.Popen(
                [sys.executable, "-m", "bridge.cli", "box", "-c", str(file)],
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the demo, which ends them
            )

    async def _live(self, client: ScaleClient, count: int) -> bool:
        """Whether `count` hosts are live, whichever Box answers."""
        operator = Operator(client.connection)
        for _ in range(_SURE):
            try:
                hosts = await operator.hosts(timeout=1.0)
            except ScaleError:
                return False  # no Box answers yet
            if sum(host.live for host in hosts) != count:
                return False
        return True

    async def _where(self, client: ScaleClient, http: aiohttp.ClientSession) -> dict[str, int]:
        """The number of instances on each host; every instance is asked for its pid."""
        seen = await self._settled(client)
        for info in seen.instances:
            self._pids[info.id] = (await get(http, info))["pid"]
        return dict(Counter(seen.hosts.values()))

    async def _settled(self, client: ScaleClient) -> InstancesResponse:
        """The instances, once exactly the wanted number is listed and all serve. The Box that
        answers now may not have seen yet what the Box before it had seen.
        """
        latest: list[InstancesResponse] = []

        async def settled() -> bool:
            latest[:] = [await client.observe("web")]
            states = [info.state for info in latest[0].instances]
            return len(states) == _REPLICAS and SERVING.issuperset(states)

        await _eventually(settled, f"{_REPLICAS} serve, and no other is there")
        return latest[0]


class _Load:
    """Requests through the route table, one after the other, while the block lasts.

    A request that fails is sent to the other instances, as gateways do: until the lease of a dead
    host expires, its instances are still in the table.
    """

    def __init__(self, table: RouteTable, http: aiohttp.ClientSession) -> None:
        self._table = table
        self._http = http
        self.sent = self.retried = self.failed = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def through(cls, table: RouteTable, http: aiohttp.ClientSession) -> AsyncIterator[_Load]:
        load = cls(table, http)
        async with task_scope() as tasks:
            tasks.create_task(load._run())
            yield load

    def check(self, *, retried: int | None = None) -> str:
        """A summary of the requests so far. Raises StepFailed if one failed."""
        expect(self.sent > 0, "no request was sent")
        expect(not self.failed, f"{self.failed} of {self.sent} requests failed")
        if retried is not None:
            expect(self.retried <= retried, f"{self.retried} requests had to be sent again")
        return f"{self.sent} requests, {self.retried} of them sent again"

    async def _run(self) -> None:
        while True:
            self.sent += 1
            async with self._table.lease("web") as route:
                succeeded = await self._get(route)
            if not succeeded:
                self.retried += 1
                others = [other for other in self._table.endpoints("web") if other != route]
                self.failed += not any([await self._get(other) for other in others])
            await asyncio.sleep(_LOOK / 5)

    async def _get(self, route: Route) -> bool:
        try:
            async with self._http.get(f"http://{route.endpoint}/") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False


def _format(where: dict[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in sorted(where.items()))


async def _eventually(
    condition: Callable[[], Awaitable[bool]], what: str, within: float = PATIENCE
) -> None:
    deadline = asyncio.get_running_loop().time() + within
    while not await condition():
        expect(asyncio.get_running_loop().time() < deadline, f"not within {within:g} s: {what}")
        await asyncio.sleep(_LOOK)
