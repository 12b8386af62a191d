"""`gateway`: the fleet over HTTP, until a signal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from msgspec import Struct

from bridge.cli.flags import Json, Link, Logging, configure_logs
from bridge.console import err, print_json
from bridge.errors import ConfigError


class Listening(Struct, frozen=True, kw_only=True):
    """Where the daemon listens."""

    url: str


async def gateway(
    *,
    listen: Annotated[
        str, Parameter(help="HOST:PORT to listen on. Port 0 means any that is free.")
    ] = "127.0.0.1:9090",
    tokens_file: Annotated[
        Path | None,
        Parameter(help="A file with a token on each line, one of which each request must bear."),
    ] = None,
    certificate: Annotated[
        Path | None, Parameter(help="A certificate chain (PEM): serve HTTPS.")
    ] = None,
    key: Annotated[Path | None, Parameter(help="The key of the certificate (PEM).")] = None,
    client_ca: Annotated[
        Path | None, Parameter(help="Accept only clients with a certificate of this CA (PEM).")
    ] = None,
    stale: Annotated[
        float,
        Parameter(
            validator=Number(gt=0, lte=86400),
            help="/readyz answers 503 when the routes are older, in seconds.",
        ),
    ] = 30.0,
    link: Link | None = None,
    logging: Logging | None = None,
    json: Json = False,
) -> int:
    """Serve the fleet over HTTP, for the gateways that you run.

    An a3s-gateway scales services through it (executor_endpoint). Prometheus and
    Traefik discover instances from it, other programs read routes and events. It
    answers from memory, and any number of daemons can run side by side. For
    example:

        box-bridge gateway --listen 127.0.0.1:9090
        curl http://127.0.0.1:9090/v1/scale/web
        box-bridge gateway --listen 0.0.0.0:9090 --tokens-file tokens
    """
    import asyncio

    from bridge.cli.connect import connect, explained_wait
    from bridge.cli.signals import wait_until_signal
    from bridge.gateway.http.server import GatewayConfig, serve
    from bridge.tasks import task_scope

    host, port = _parse_listen(listen)
    config = GatewayConfig(
        host=host,
        port=port,
        tokens_file=tokens_file,
        certificate=certificate,
        key=key,
        client_ca=client_ca,
        stale=stale,
    )
    config.check()
    configure_logs(logging, json=json)
    ended = asyncio.Event()

    async def run() -> None:
        async with (
            connect(link, "gateway", wait=True) as connection,
            explained_wait(connection) as arrived,
            serve(connection, config) as server,
        ):
            arrived()
            if json:
                print_json(Listening(url=server.url))
            else:
                err.print(f"Listening on {server.url}; see {server.url}/openapi.json", markup=False)
            await ended.wait()

    def stop() -> bool:
        ended.set()
        return True

    async with task_scope() as tasks:
        return await wait_until_signal(tasks.create_task(run(), name="gateway"), stop)


def _parse_listen(listen: str) -> tuple[str, int]:
    """Host and port. Raises ConfigError."""
    host, colon, port = listen.rpartition(":")
    if not colon or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise ConfigError("--listen", f"{listen!r} must be HOST:PORT, e.g. 127.0.0.1:9090")
    return host.strip("[]"), int(port)
