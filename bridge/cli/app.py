"""Every verb and its flags. What a verb does is imported when it is called."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Group, Parameter
from cyclopts.validators import Number

from bridge.errors import ConfigError
from bridge.protocol import U32_MAX
from bridge.version import VERSION

_NATS = Group("Connection", sort_key=90)
_LOG = Group("Logging", sort_key=95)
_U8 = Number(gte=0, lte=255)
_U32 = Number(gte=0, lte=U32_MAX)

app = App(
    name="box-bridge",
    version=VERSION,
    help="""Scale, watch and route the instances that Boxes run, over NATS.

Start everything on this machine, then ask for three replicas, in two terminals:

    box-bridge up -c box.toml
    box-bridge scale web 3 --wait

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 nobody answered or it took too long.
""",
    help_format="plaintext",
    help_flags=["--help", "-h"],
)
config_app = App(name="config", help="Look at a configuration file.", help_format="plaintext")
app.command(config_app)


@Parameter(name="*")
@dataclass
class Link:
    """How to reach NATS. The environment has its say too: NATS_URL, NATS_CREDS, NATS_NKEY,
    NATS_USER, NATS_PASSWORD, NATS_TOKEN, NATS_CA, NATS_CERT, NATS_KEY.
    """

    server: Annotated[
        str | None,
        Parameter(
            name=["--server", "-s"],
            group=_NATS,
            help="NATS URL, several separated by commas. Default: NATS_URL, or this machine's.",
        ),
    ] = None
    context: Annotated[
        str | None, Parameter(group=_NATS, help="A context of the nats CLI, by name.")
    ] = None
    prefix: Annotated[
        str | None,
        Parameter(group=_NATS, help="First token of the fleet's subjects. Default: box."),
    ] = None

    def flags(self) -> dict[str, Any]:
        """As `bridge.config` takes them."""
        return {"url": self.server, "context": self.context, "prefix": self.prefix}


@Parameter(name="*")
@dataclass
class Logging:
    """How much a Box says, and how."""

    log: Annotated[
        Literal["debug", "info", "warning", "error"] | None,
        Parameter(group=_LOG, help="Least level to log. Default: BOX_BRIDGE_LOG, or info."),
    ] = None


ConfigFile = Annotated[
    Path | None,
    Parameter(
        name=["--config", "-c"],
        help="The TOML file. Default: BOX_BRIDGE_CONFIG, or box.toml here if there is one.",
    ),
]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON, for programs.")]


@dataclass
class _Host:
    name: Annotated[str | None, Parameter(help="This host's name on the bus.")] = None
    address: Annotated[
        str | None, Parameter(help="Where gateways reach this host's instances.")
    ] = None
    max_instances: Annotated[int | None, Parameter(help="The most instances to run here.")] = None
    data_dir: Annotated[Path | None, Parameter(help="Where this Box keeps its state.")] = None
    on_exit: Annotated[
        Literal["leave", "drain"] | None,
        Parameter(help="What becomes of the instances when the Box stops. Default: see above."),
    ] = None

    def flags(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "address": self.address,
            "max_instances": self.max_instances,
            "data_dir": None if self.data_dir is None else str(self.data_dir),
            "on_exit": self.on_exit,
        }


Host = Annotated[_Host, Parameter(name="*")]


@app.command
def up(
    *,
    config: ConfigFile = None,
    port: Annotated[
        int,
        Parameter(validator=Number(gte=0, lte=65535), help="Where NATS listens; 0: any free port."),
    ] = 4222,
    host: Host | None = None,
    prefix: Annotated[str | None, Parameter(group=_NATS, help="See `box-bridge box`.")] = None,
    logging: Logging | None = None,
    json: Json = False,
) -> int:
    """Run a NATS server and a Box on this machine, until Ctrl-C.

    The first Ctrl-C drains the instances, a second one ends them at once; with --on-exit leave
    they keep running, and the next `up` takes them back. The server's store is kept in the data
    directory, so that the next `up` goes on where this one ended.
    """
    from bridge.cli.serve import run_up

    box = (host or _Host()).flags()
    level = logging.log if logging else None
    return asyncio.run(run_up(config, box, {"prefix": prefix}, port=port, level=level, json=json))


@app.command
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
    """
    from bridge.cli.serve import run_box

    level = logging.log if logging else None
    flags = (host or _Host()).flags()
    return asyncio.run(run_box(config, flags, (link or Link()).flags(), level=level, json=json))


@app.command
def scale(
    service: Annotated[str, Parameter(help="The service, as a Box's configuration names it.")],
    replicas: Annotated[int, Parameter(validator=_U32, help="How many instances it shall have.")],
    /,
    *,
    image: Annotated[str | None, Parameter(help="OCI image, where the runtime has images.")] = None,
    vcpus: Annotated[
        int | None, Parameter(validator=_U8, help="Processors of each instance.")
    ] = None,
    memory_mib: Annotated[
        int | None, Parameter(validator=_U32, help="Memory of each instance, in MiB.")
    ] = None,
    env: Annotated[
        list[str] | None, Parameter(negative="", help="KEY=VALUE; may be given again.")
    ] = None,
    port: Annotated[
        list[str] | None, Parameter(negative="", help="HOST:GUEST; may be given again.")
    ] = None,
    replace_config: Annotated[
        bool, Parameter(negative="", help="The flags above state the whole config.")
    ] = False,
    request_id: Annotated[
        str | None, Parameter(help="Repeat an earlier request: it has one effect.")
    ] = None,
    wait: Annotated[
        bool, Parameter(negative="", help="Return when the instances are Ready.")
    ] = False,
    timeout: Annotated[
        float | None,
        Parameter(
            validator=Number(gt=0, lte=86400),
            help="Seconds for all of it. Default: 10, or 120 with --wait.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, Parameter(negative="", help="Say what would happen, change nothing.")
    ] = False,
    link: Link | None = None,
    json: Json = False,
) -> int:
    """Have a service run so many instances, and say what a Box answered.

    A null or empty field leaves that override as it is; instances whose config changes are
    replaced one at a time. For example:

        box-bridge scale web 3 --wait
        box-bridge scale web 3 --memory-mib 256 --env LEVEL=debug
        box-bridge scale web 0
    """
    from bridge.cli.scale import run_scale
    from bridge.protocol import ScaleConfig

    overrides = ScaleConfig(
        image=image, vcpus=vcpus, memory_mib=memory_mib, env=_pairs(env), port_map=port or []
    )
    return asyncio.run(
        run_scale(
            service,
            replicas,
            overrides,
            (link or Link()).flags(),
            replace_config=replace_config,
            request_id=request_id,
            wait=wait,
            timeout=timeout,
            dry_run=dry_run,
            json=json,
        )
    )


@app.command
def ps(
    service: Annotated[str, Parameter(help="One service; all of them if left out.")] = "",
    /,
    *,
    watch: Annotated[
        bool, Parameter(name=["--watch", "-w"], negative="", help="Keep looking, until Ctrl-C.")
    ] = False,
    local: Annotated[
        bool, Parameter(negative="", help="Ask nobody: show what this host's journal says.")
    ] = False,
    config: ConfigFile = None,
    data_dir: Annotated[
        Path | None, Parameter(help="The data directory of this host's Box, for its journal.")
    ] = None,
    link: Link | None = None,
    json: Json = False,
) -> int:
    """List the fleet's instances, oldest first, with their state, host and load.

    When nobody answers, and this host has the journal of a Box, that is shown: its instances, since
    when it has been cut off, and what it has yet to tell. The exit code says 3 all the same.
    """
    from bridge.cli.journal import JournalView
    from bridge.cli.ps import run_ps

    flags, journal = (link or Link()).flags(), JournalView(config, data_dir)
    return asyncio.run(run_ps(service, flags, journal, watch=watch, local=local, json=json))


@app.command
def events(
    service: Annotated[str | None, Parameter(help="One service; all if left out.")] = None,
    /,
    *,
    link: Link | None = None,
    json: Json = False,
) -> int:
    """Show what happens to instances as it happens, until Ctrl-C.

    With --json each line is one InstanceEvent of the wire contract.
    """
    from bridge.cli.events import run_events

    return asyncio.run(run_events(service, (link or Link()).flags(), json=json))


@app.command
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

    The logs of the ten last ended instances of each service are kept.
    """
    from bridge.cli.logs import run_logs

    flags = (link or Link()).flags()
    return asyncio.run(run_logs(instance_id, config, data_dir, flags, follow=follow, json=json))


@config_app.command
def check(*, config: ConfigFile = None, json: Json = False) -> int:
    """Say whether a configuration is right, and what it comes to with the environment's part."""
    from bridge.cli.check import run_check

    return run_check(config, json=json)


@app.command
def demo(
    *,
    keep: Annotated[
        bool, Parameter(negative="", help="Keep the directory with logs and store afterwards.")
    ] = False,
    json: Json = False,
) -> int:
    """See it work: server, Box, two services, a crash, a drain. Takes less than 30 seconds.

    Everything runs on this machine, in a directory of its own, and each step is verified: the
    exit code is 0 only if all held.
    """
    from bridge.cli.demo import run_demo

    return asyncio.run(run_demo(keep=keep, json=json))


@app.command
def version(*, json: Json = False) -> int:
    """Show the versions of box-bridge and of what it runs on."""
    from bridge.cli.version import run_version

    return run_version(json=json)


def _pairs(given: list[str] | None) -> dict[str, str]:
    pairs = {}
    for item in given or ():
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise ConfigError("--env", f"{item!r} must be KEY=VALUE")
        pairs[key] = value
    return pairs
