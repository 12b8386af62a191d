"""A fleet of several Boxes in one process, and how to look at it as an operator does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from bridge import Operator, ScaleClient
from bridge.admin_protocol import Host
from bridge.box.daemon import Box
from bridge.box.state.records import ServiceRecord
from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream.api import jetstream
from bridge.protocol import decode, now
from tests.boxes import serving
from tests.support import FIRST_PORT, Recorder, ask, box_config, connect, eventually


class Fleet:
    """Boxes that come and go, a gateway's connection, and everything that is published."""

    def __init__(
        self, server: EmbeddedServer, directory: Path, gateway: Connection, recorder: Recorder
    ) -> None:
        self._server = server
        self._directory = directory
        self._stack = AsyncExitStack()
        self._count = 0
        self.gateway = gateway
        self.recorder = recorder
        self.operator = Operator(gateway)
        self.ahead = timedelta()  # of the true time, which every Box's clock is

    @classmethod
    @asynccontextmanager
    async def of(
        cls, server: EmbeddedServer, directory: Path, *names: str, **settings: Any
    ) -> AsyncIterator[Fleet]:
        async with connect(server.url) as gateway:
            fleet = cls(server, directory, gateway, await Recorder.listening(gateway))
            async with fleet._stack:
                for name in names:
                    await fleet.join(name, **settings)
                yield fleet
            fleet.recorder.check_chains()

    async def join(self, name: str, *services: str, **settings: Any) -> Box:
        """One more Box, once all live ones count it among them."""
        first = FIRST_PORT + 100 * self._count
        self._count += 1
        config = box_config(
            self._directory,
            self._server.url,
            *services,
            name=name,
            ports=f"{first}-{first + 99}",
            **settings,
        )
        return await self._stack.enter_async_context(
            Box.running(config, clock=lambda: now() + self.ahead)
        )

    async def run(self, count: int, service: str = "web", **fields: Any) -> dict[str, str]:
        """Which instance is on which host, once so many serve."""
        answer = await ask(self.gateway, service, count, **fields)
        assert answer.accepted, answer.error
        await serving(self.gateway, service, count)
        return await self.placed(service)

    async def emptied(self) -> None:
        """Scale to none, and return when no slot is held."""
        await self.run(0)
        await self.held(0)

    async def held(self, count: int) -> None:
        """Return when so many slots are held."""

        async def so_many() -> bool:
            return sum(host.used for host in await self.operator.hosts()) == count

        await eventually(so_many, what=f"{count} slots are held")

    async def placed(self, service: str = "web") -> dict[str, str]:
        return dict((await ScaleClient(self.gateway).observe(service)).hosts)

    async def seen(self, name: str, so: Callable[[Host], bool]) -> None:
        """Return when the host is seen so; one Box may be a moment behind another."""

        async def is_so() -> bool:
            return so(await self.host(name))

        await eventually(is_so, what=f"{name} is seen to be as it should")

    async def host(self, name: str) -> Host:
        [found] = await self.operator.hosts(name)
        return found

    def fewest_registered(self, since: int) -> int:
        """The fewest instances that were registered at once, after the first `since` messages."""
        registered: set[str] = set()
        fewest = 10**6
        for number, message in enumerate(self.recorder.messages):
            _, kind, *rest = message.subject.split(".")
            if kind == "register":
                registered.add(rest[-1])
            elif kind == "deregister":
                registered.discard(rest[-1])
            if number >= since:
                fewest = min(fewest, len(registered))
        return fewest


async def service_record(gateway: Connection, service: str = "web") -> ServiceRecord:
    message = await jetstream(gateway).get_last_msg(
        "KV_box_services", f"$KV.box_services.{service}"
    )
    return decode(ServiceRecord, message.data or b"")
