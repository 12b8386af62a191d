"""An instance that registers itself, by the library, and serves HTTP. Arguments: [PORT [WORD …]]

own-handler   handle SIGTERM itself: leave the block

The paths: ``/`` says who answers; ``/say?JSON`` reports that health.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from urllib.parse import unquote

from bridge import register
from bridge.instance import Registration
from bridge.settings import Timing


class Service:
    def __init__(self) -> None:
        self.registration: asyncio.Future[Registration] = asyncio.Future()
        self.end = asyncio.Event()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readline()).split()
        if len(request) > 1:  # a TCP probe says nothing
            registration = await self.registration  # it listens a moment before
            path, _, argument = request[1].decode().partition("?")
            if path == "/say":
                registration.report(**json.loads(unquote(argument)))
            body = json.dumps({"instance": registration.instance_id, "pid": os.getpid()})
            writer.write(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
            writer.write(body.encode())
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def main(port: int, words: list[str]) -> None:
    service = Service()
    if "own-handler" in words:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, service.end.set)
    server = await asyncio.start_server(service.answer, "127.0.0.1", port)
    port = server.sockets[0].getsockname()[1]
    endpoint = None if os.environ.get("BOX_INSTANCE_ID") else f"127.0.0.1:{port}"
    timing = Timing(sample=0.1, registration_renew=0.3, registration_ttl=1)
    async with (
        server,
        register(
            service="web",
            endpoint=endpoint,
            metadata={"version": "7"},
            deregister_delay=0.1,
            timing=timing,
        ) as registration,
    ):
        service.registration.set_result(registration)
        print("registered", flush=True)
        await service.end.wait()
    print("the block is over", flush=True)


if __name__ == "__main__":
    try:
        asyncio.run(main(int(sys.argv[1]), sys.argv[2:]))
    finally:
        print("cleaned up", flush=True)
