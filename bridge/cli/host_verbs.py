"""The verbs of a host: running Boxes, and looking at what they keep here."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from bridge.cli.flags import NATS_GROUP, ConfigFile, Host, HostFlags, Json, Link, Logging


def up(
    *,
    config: ConfigFile = None,
    port: Annotated[
        int,
        Parameter(validator=Number(gte=0, lte=65535), help="Where NATS listens; 0: any free port."),
    ] = 4222,
    host: Host | None = None,
    prefix: Annotated[str | None, Parameter(group=NATS_GROUP, help="See `box-bridge box`.")] = None,
    logging: Logging | None = None,
    json: Json = False,
) -> int:
    """Run a NATS server and a Box on this machine, until Ctrl-C.

    The first Ctrl-C drains the instances, a second one ends them at once; with --on-exit leave
    they keep running, and the next `up` takes them back. The server's store is kept in the data
    directory, so that the next `up` goes on where this one ended.

    Instances are processes; with [box] runtime = "oci" they are containers of podman, docker or
    nerdctl, or MicroVMs of a3s-box. In box.toml:

        [box]
        runtime = "oci"
        engine = "podman"

        [services.web]
        image = "docker.io/library/nginx:alpine"
        port_map = ["0:80"]
    """
    from bridge.cli.commands.serve import run_up

    box = (host or HostFlags()).flags()
    level = logging.log if logging else None
    return asyncio.run(run_up(config, box, {"prefix": prefix}, port=port, level=level, json=json))


def box(
    *,
    config: ConfigFile = None,
    host: Host | None = None,
    link: Link | None = None,
    logging: Logging | None = None,
    json: Json = False,
) -> int:
    """Run a Box on an existing NATS, until Ctrl-C or SIGTERM.

    The NATS server needs JetStream; deploy/nats/nats-server.conf has the settings that keep what
    was acknowledged. The first signal stops the Box in order, a second one at once; either way the
    instances keep running, and the next life of the Box takes them back. With --on-exit drain the
    first signal drains them, and a second one ends them at once.

    Instances are processes; with [box] runtime = "oci" containers or MicroVMs: see `up --help`.
    """
    from bridge.cli.commands.serve import run_box

    level = logging.log if logging else None
    flags = (host or HostFlags()).flags()
    return asyncio.run(run_box(config, flags, (link or Link()).flags(), level=level, json=json))


def logs(
    instance_id: Annotated[str, Parameter(help="The instance, as `ps` or an event names it.")],
    /,
    *,
    follow: Annotated[
        bool, Parameter(name=["--follow", "-f"], negative="", help="Go on until it has ended.")
    ] = False,
    config: ConfigFile = None,
    data_dir: Annotated[
        Path | None, Parameter(help="The data directory of the Box that ran it.")
    ] = None,
    link: Link | None = None,
    json: Json = False,
) -> int:
    """Show what an instance of this host has written to stdout and stderr.

    The logs of the ten last ended instances of each service are kept. While a container runs, its
    engine has its log, and this says how to ask for it.
    """
    from bridge.cli.commands.logs import run_logs

    flags = (link or Link()).flags()
    return asyncio.run(run_logs(instance_id, config, data_dir, flags, follow=follow, json=json))


def check(*, config: ConfigFile = None, json: Json = False) -> int:
    """Say whether a configuration is right, and what it comes to with the environment's part."""
    from bridge.cli.commands.check import run_check

    return run_check(config, json=json)


def doctor(*, config: ConfigFile = None, link: Link | None = None, json: Json = False) -> int:
    """Check that everything is there which a Box needs, or a gateway: a line each, with the cure.

    With a configuration file it looks at NATS as that Box would, and at this host; without one, at
    NATS as a gateway would:

        box-bridge doctor -c box.toml
        box-bridge doctor -s nats://127.0.0.1:4222

    Each check has a deadline, and none hides another. Nothing is changed: a Box may be at work.
    The exit code is 0 when nothing failed, and 1 when something did; warnings do not count.
    """
    from bridge.cli.commands.doctor import run_doctor

    return asyncio.run(run_doctor(config, (link or Link()).flags(), json=json))


def demo(
    *,
    keep: Annotated[
        bool, Parameter(negative="", help="Keep the directory with logs and store afterwards.")
    ] = False,
    json: Json = False,
) -> int:
    """See it work: a server, Boxes, a crash, a drain, a lost host. Takes less than 30 seconds.

    Everything runs on this machine, in a directory of its own, and each step is verified: the
    exit code is 0 only if all held.
    """
    from bridge.cli.commands.demo import run_demo

    return asyncio.run(run_demo(keep=keep, json=json))


def version(*, json: Json = False) -> int:
    """Show the versions of box-bridge and of what it runs on."""
    from bridge.cli.commands.version import run_version

    return run_version(json=json)
