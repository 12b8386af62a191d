"""A load of real HTTP requests, routed as a gateway does it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bridge import Delete, NoRoute, Route, RouteTable
from bridge.tasks import task_scope
from tests.support import eventually

WORKERS = 6


async def get(endpoint: str, path: str = "/") -> bytes:
    """The answer to a GET on a connection of its own; raises OSError when there is none."""
    host, _, port = endpoint.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        answer = await reader.read()
    finally:
        writer.close()
    if not answer.startswith(b"HTTP/1.0 200"):
        raise ConnectionError(f"answered {answer[:20]!r}")
    return answer


class Load:
    """Requests, some of them slow, that go wherever the table says; and what became of them."""

    def __init__(self, table: RouteTable) -> None:
        self.table = table
        self.served: dict[str, int] = {}
        self.failed: list[tuple[Route, float]] = []
        self.unrouted = 0
        self.gone: dict[str, float] = {}

    @classmethod
    @asynccontextmanager
    async def on(cls, table: RouteTable) -> AsyncIterator[Load]:
        load = cls(table)
        async with task_scope() as tasks:
            tasks.create_task(load._watch())
            for number in range(WORKERS):
                tasks.create_task(load._work("/slow?0.2" if number % 3 == 0 else "/"))
            yield load

    async def _work(self, path: str) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with self.table.lease("web") as route:
                    picked = loop.time()
                    try:
                        await get(route.endpoint, path)
                    except OSError:
                        self.failed.append((route, picked))
                    else:
                        self.served[route.instance_id] = self.served.get(route.instance_id, 0) + 1
            except NoRoute:
                self.unrouted += 1
                await asyncio.sleep(0.01)

    async def _watch(self) -> None:
        """When each route was gone."""
        async for change in self.table.changes():
            if isinstance(change, Delete):
                self.gone[change.instance_id] = asyncio.get_running_loop().time()

    async def goes_on(self, requests: int = 60) -> None:
        """Return when so many more requests were served."""
        wanted = sum(self.served.values()) + requests
        await eventually(lambda: sum(self.served.values()) >= wanted)

    async def reaches(self, *names: str) -> None:
        """Return when each of these instances has served one more request."""
        before = {name: self.served.get(name, 0) for name in names}
        await eventually(
            lambda: all(self.served.get(name, 0) > count for name, count in before.items()),
            what=f"{names} serve",
        )
