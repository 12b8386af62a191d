"""`box`: a Box on an existing NATS.

When it stops it leaves its instances unless told otherwise: its upgrade restarts no instance.
"""

from __future__ import annotations

from bridge.cli.flags import (
    ConfigFile,
    Host,
    HostFlags,
    Json,
    Link,
    Logging,
    configure_logs,
)


async def box(
    *,
    config: ConfigFile = None,
    host: Host | None = None,
    link: Link | None = None,
    logging: Logging | None = None,
    json: Json = False,
) -> int:
    """Run a Box on an existing NATS, until Ctrl-C or SIGTERM.

    The NATS server needs JetStream; deploy/nats/nats-server.conf has the
    settings that keep acknowledged writes over a power loss.

        box-bridge box -c /etc/box-bridge/box.toml -s nats://nats.example.com:4222
        box-bridge box -c box.toml --name box-b --on-exit drain

    The first signal stops the Box in order, a second one at once. Either way
    the instances keep running, and the Box takes them back when it starts
    again. With --on-exit drain the first signal drains them, and a second one
    ends them at once. SIGHUP applies changed services, as `box-bridge reload` does.

    Instances are processes, or with [box] runtime = "oci" containers or
    MicroVMs: see `box-bridge up --help`.
    """
    from bridge.cli.box_config import load_config, require_services
    from bridge.cli.box_process import run_box
    from bridge.config import find_file
    from bridge.settings import Config

    flags, nats = (host or HostFlags()).flags(), (link or Link()).flags()
    file = find_file(config)

    def source() -> Config:
        return load_config(config, flags, nats)

    settings = require_services(source())
    configure_logs(logging, json=json)
    return await run_box(settings, source=source, file=file, on_exit="leave", is_daemon=True)
