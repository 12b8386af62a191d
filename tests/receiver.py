"""A real HTTP server that takes events, and fails on demand."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from aiohttp import web
from msgspec import Struct

from bridge.bus.core.connection import Connection
from bridge.bus.jetstream.publish import store
from bridge.protocol import InstanceEvent, InstanceState, encode

S = InstanceState
TAKEN = 200

Answer = int | web.StreamResponse | None
"""A status, a response, or None: hang up."""
Script = Callable[["Request"], Answer | Awaitable[Answer]]


class Request(Struct, frozen=True, kw_only=True):
    """A request as it came; `number` counts those with the same id, from 1."""

    id: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    number: int
    at: float

    @property
    def instance(self) -> str:
        return self.id.rpartition(".")[0]


class Receiver:
    """Answers each request as `script` says. `taken` are the ids that it answered with 2xx."""

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None) -> None:
        self.script = script
        self.tls = tls
        self.requests: list[Request] = []
        self.taken: list[str] = []
        self.port = 0
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}/events"

    async def start(self) -> None:
        """Listen, on the same port as before if there was one."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(
            self._runner, "127.0.0.1", self.port, reuse_address=True, ssl_context=self.tls
        )
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop: the port refuses connections."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        name = request.headers.get("ce-id", "")
        seen = Request(
            id=name,
            path=request.path,
            headers=request.headers,
            body=await request.read(),
            number=1 + sum(one.id == name for one in self.requests),
            at=asyncio.get_running_loop().time(),
        )
        self.requests.append(seen)
        found = self.script(seen)
        answer = found if isinstance(found, int | web.StreamResponse | None) else await found
        if answer is None:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        response = web.Response(status=answer) if isinstance(answer, int) else answer
        if 200 <= response.status < 300:
            self.taken.append(seen.id)
        return response

    def first_taken(self, instance: str) -> list[int]:
        """The numbers of the instance's events, each when it was first taken."""
        ids = dict.fromkeys(name for name in self.taken if name.rpartition(".")[0] == instance)
        return [int(name.rpartition(".")[2]) for name in ids]


@asynccontextmanager
async def receiving(
    script: Script = lambda request: TAKEN, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Receiver]:
    receiver = Receiver(script, tls)
    await receiver.start()
    try:
        yield receiver
    finally:
        await receiver.stop()


async def tell(
    connection: Connection,
    instance: str,
    number: int,
    *,
    service: str = "web",
    state: S = S.READY,
    data: bytes = b"",
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """Store an event of the instance as its Box would; its payload."""
    event = InstanceEvent.transition(instance, service, S.BOOTING, state).with_message(str(number))
    data = data or encode(event)
    await store(
        connection,
        f"box.events.{service}",
        data,
        headers={
            "Nats-Msg-Id": f"{instance}.{number}",
            "Box-Seq": str(number),
            "Box-Host": "box-a",
            **(headers or {}),
        },
    )
    return data
