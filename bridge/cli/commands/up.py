"""`up`: a NATS server and a Box on this machine.

When `up` ends it drains its instances unless told otherwise: it is the command to try things out.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from bridge.cli.flags import (
    CONNECTION,
    ConfigFile,
    Host,
    HostFlags,
    Json,
    Logging,
    configure_logs,
)

if TYPE_CHECKING:
    from bridge.bus.embedded_server import EmbeddedServer
    from bridge.settings import Config


@contextlib.asynccontextmanager
async def _explained(directory: Path, port: int) -> AsyncIterator[tuple[EmbeddedServer, Path]]:
    """The started server, and its key's file. Raises HostTaken for a directory or a port that is
    taken.
    """
    from bridge.bus.local_server import local_server
    from bridge.errors import HostTaken, ServerNotStarted

    async with contextlib.AsyncExitStack() as stack:
        try:
            started = await stack.enter_async_context(local_server(directory, port=port))
        except ServerNotStarted as exc:
            if exc.owner:
                raise HostTaken(f"`up` already runs here ({exc.owner})") from exc
            if exc.port_taken:
                raise HostTaken(
                    f"Port {exc.port_taken} is taken. Use `--port 0`, or run a Box on that NATS: "
                    f"`box-bridge box -s nats://127.0.0.1:{exc.port_taken}`"
                ) from exc
            raise
        yield started


async def _print_summary(settings: Config, url: str) -> None:
    """Print where everything is, what the Box has found wrong on this host, and what to type."""
    from bridge.cli.examination import examine_host
    from bridge.console import err
    from bridge.diagnostics import Status
    from bridge.settings import DEFAULT_URL

    findings = (await examine_host(settings)).values()
    problems = [item for item in findings if item.status in (Status.WARN, Status.FAIL)]
    first = min(settings.services, default="web --image …")
    flag = "" if url == DEFAULT_URL else f" -s {url}"
    rows = [
        ("NATS server", url),
        ("Data", str(settings.data_dir)),
        ("Services", ", ".join(settings.services) or "images on request"),
        *(("Problem", f"{item.message}: {item.fix}") for item in problems),
        ("Next", f"box-bridge scale {first} 2 --wait{flag}"),
        ("", f"box-bridge events{flag}"),
        ("", f"box-bridge routes{flag}"),
    ]
    for name, value in rows:
        err.print(f"{f'{name}:' if name else '':<13}{value}", markup=False)


async def up(
    *,
    config: ConfigFile = None,
    port: Annotated[
        int,
        Parameter(validator=Number(gte=0, lte=65535), help="Where NATS listens; 0: any free port."),
    ] = 4222,
    host: Host | None = None,
    context: Annotated[
        str, Parameter(help="Write a context of this name, for the nats CLI and other programs.")
    ] = "",
    prefix: Annotated[str | None, Parameter(group=CONNECTION, help="See `box-bridge box`.")] = None,
    logging: Logging | None = None,
    json: Json = False,
) -> int:
    """Run a NATS server and a Box on this machine, until Ctrl-C.

    The first Ctrl-C drains the instances, a second one ends them at once. SIGTERM
    and SIGHUP, as of a closed terminal, do the same. With --on-exit leave the
    instances keep running, and the next `up` takes them back. The data directory
    keeps the server's store: the next `up` continues from it.

    The server takes programs of your user alone: `box-bridge` and its library
    find the key by themselves. With --context the nats CLI connects, too.

        box-bridge up -c box.toml
        box-bridge up --port 0 --on-exit leave
        box-bridge up --context local

    Instances are processes. With [box] runtime = "oci" they are containers of
    podman, docker or nerdctl, or MicroVMs of a3s-box. In box.toml:

        [box]
        runtime = "oci"
        engine = "podman"

        [services.web]
        image = "docker.io/library/nginx:alpine"
        port_map = ["0:80"]
    """
    from msgspec.structs import replace

    from bridge.cli.box_config import load_config, require_services
    from bridge.cli.box_process import run_box
    from bridge.config import find_file
    from bridge.config.nats_context import check_context, write_context
    from bridge.settings import DEFAULT_URL, NatsConfig

    flags = (host or HostFlags()).flags()
    settings = require_services(load_config(config, flags, {"prefix": prefix, "url": DEFAULT_URL}))
    configure_logs(logging, json=json)
    if context:
        check_context(context)
    async with _explained(settings.data_dir / "nats", port) as (server, key):
        if context:
            write_context(context, server.url, key)
        # Credentials, TLS and a domain are for other servers; this server takes one key.
        nats = NatsConfig(
            url=server.url,
            nkey=str(key),
            prefix=settings.nats.prefix,
            reply_prefixes=settings.nats.reply_prefixes,
        )

        async def print_summary() -> None:
            if not json:
                await _print_summary(settings, server.url)

        def source() -> Config:
            loaded = load_config(config, flags, {"prefix": prefix, "url": DEFAULT_URL})
            return replace(loaded, nats=nats)

        return await run_box(
            replace(settings, nats=nats),
            source=source,
            file=find_file(config),
            on_exit="drain",
            is_daemon=False,
            server=server.watch(),
            on_ready=print_summary,
        )
