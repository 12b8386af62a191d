"""The verbs of a gateway: asking for replicas, and seeing what becomes of them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from bridge.cli.flags import ConfigFile, Json, Link, Logging, pairs
from bridge.protocol import U32_MAX, InstanceState

_U8 = Number(gte=0, lte=255)
_U32 = Number(gte=0, lte=U32_MAX)


def scale(
    service: Annotated[str, Parameter(help="The service, as a Box's configuration names it.")],
    replicas: Annotated[int, Parameter(validator=_U32, help="How many instances it shall have.")],
    /,
    *,
    image: Annotated[str | None, Parameter(help="OCI image, which hosts must admit.")] = None,
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
        box-bridge scale shop 2 --image nginx:1.27 --port 0:80
        box-bridge scale web 0
    """
    from bridge.cli.commands.scale import run_scale
    from bridge.protocol import ScaleConfig

    overrides = ScaleConfig(
        image=image,
        vcpus=vcpus,
        memory_mib=memory_mib,
        env=pairs("--env", env),
        port_map=port or [],
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
    from bridge.cli.commands.ps import run_ps
    from bridge.cli.local_journal import JournalView

    flags, journal = (link or Link()).flags(), JournalView(config, data_dir)
    return asyncio.run(run_ps(service, flags, journal, watch=watch, local=local, json=json))


def events(
    *service: Annotated[str, Parameter(help="Only these services; all if left out.")],
    since: Annotated[
        str | None,
        Parameter(help="Also what was stored since: 90s, 10m, 2h, 7d, a stream sequence, or all."),
    ] = None,
    state: Annotated[
        list[InstanceState] | None,
        Parameter(negative="", help="Only events that go to this state; may be given again."),
    ] = None,
    durable: Annotated[
        str | None,
        Parameter(help="A name that lasts: the next run with it goes on where this one ended."),
    ] = None,
    follow: Annotated[bool, Parameter(help="Wait for what is to come, until Ctrl-C.")] = True,
    link: Link | None = None,
    json: Json = False,
) -> int:
    """Show what happens to instances as it happens, or what has happened, until Ctrl-C.

    With --json each line is one InstanceEvent of the wire contract. What is missing (too slow, or
    no longer kept) is told on stderr. For example:

        box-bridge events web api --since 10m
        box-bridge events --since all --no-follow --state Failed
        box-bridge events --durable mailer --json | ./mail-each

    With --durable an event is acknowledged when it has been printed. A new name begins at --since,
    or at the first event kept; several runs with one name at a time share the events. --no-follow
    ends when all that is stored has been shown; without --since that is all that is kept.
    """
    from bridge.cli.commands.events import EventOptions, run_events

    asked = EventOptions(
        services=list(service) or None, states=state, since=since, durable=durable, follow=follow
    )
    return asyncio.run(run_events(asked, (link or Link()).flags(), json=json))


def timeline(
    service: Annotated[str, Parameter(help="The service whose instances are drawn.")],
    /,
    *,
    since: Annotated[
        str, Parameter(help="How far back: 90s, 10m, 2h, 7d, or all that is stored.")
    ] = "1h",
    svg: Annotated[
        Path | None, Parameter(help="Write the picture into this file, as SVG, to share it.")
    ] = None,
    rows: Annotated[
        int,
        Parameter(validator=Number(gte=1, lte=1000), help="The most instances to draw."),
    ] = 50,
    width: Annotated[
        int | None,
        Parameter(
            validator=Number(gte=20, lte=1000),
            help="Letters that the bars may take. Default: the terminal's, 120 in all at most.",
        ),
    ] = None,
    timeout: Annotated[
        float,
        Parameter(validator=Number(gt=0, lte=86400), help="Seconds for reading the events."),
    ] = 60.0,
    link: Link | None = None,
    json: Json = False,
) -> int:
    """Draw what became of a service's instances, a bar for each, from the events that are stored.

    Those that live run to the right edge, which is now; the latest failures are told beneath. Of
    more instances than --rows those that ended first are left out. For example:

        box-bridge timeline web
        box-bridge timeline web --since 2h --svg incident.svg
    """
    from bridge.cli.commands.timeline import run_timeline

    return asyncio.run(
        run_timeline(
            service,
            (link or Link()).flags(),
            since=since,
            rows=rows,
            width=width,
            file=svg,
            timeout=timeout,
            json=json,
        )
    )


def relay(
    *service: Annotated[str, Parameter(help="The services whose events are sent; all if none.")],
    to: Annotated[str, Parameter(help="The http:// or https:// URL that takes the events.")],
    durable: Annotated[
        str, Parameter(help="The name under which NATS remembers what was sent.")
    ] = "relay",
    state: Annotated[
        list[InstanceState] | None,
        Parameter(negative="", help="Only events that go to this state; may be given again."),
    ] = None,
    since: Annotated[
        str | None,
        Parameter(
            help="Where a new durable begins: 10m, 2h, 7d ago, a sequence, or all. Default: now."
        ),
    ] = None,
    header: Annotated[
        list[str] | None,
        Parameter(negative="", help="NAME=VALUE, or NAME=@FILE for a secret; may be given again."),
    ] = None,
    timeout: Annotated[
        float, Parameter(validator=Number(gt=0, lte=600), help="Seconds for each request.")
    ] = 10.0,
    max_attempts: Annotated[
        int,
        Parameter(validator=Number(gte=1, lte=1_000_000), help="Then an event is a dead letter."),
    ] = 20,
    link: Link | None = None,
    logging: Logging | None = None,
    json: Json = False,
) -> int:
    """Send what happens to instances to an HTTP endpoint, as CloudEvents, until Ctrl-C.

    Each event is posted until it was taken (2xx), in order for each instance, over restarts of the
    relay, of NATS and of the receiver. What the receiver refuses (4xx), or fails to take too often,
    is kept as a dead letter on <prefix>.dead.<durable>. One relay runs under a name. For example:

        box-bridge relay --to https://example.com/events
        box-bridge relay web --to https://example.com/events --durable alerts --state Failed
        box-bridge relay --to https://example.com/events --header Authorization=@/run/secrets/token
    """
    from bridge.cli.commands.relay import read_headers, run_relay, start_of
    from bridge.gateway.relay.relay import RelayConfig

    config = RelayConfig(
        url=to,
        durable=durable,
        services=service,
        states=tuple(state or ()),
        headers=read_headers(header),
        timeout=timeout,
        max_attempts=max_attempts,
        start=start_of(since),
    )
    level = (logging or Logging()).log
    return asyncio.run(run_relay(config, (link or Link()).flags(), level=level, json=json))


def routes(
    service: Annotated[str | None, Parameter(help="One service; all if left out.")] = None,
    /,
    *,
    watch: Annotated[
        bool,
        Parameter(name=["--watch", "-w"], negative="", help="Go on with what changes."),
    ] = False,
    link: Link | None = None,
    json: Json = False,
) -> int:
    """List the endpoints that take traffic, as a gateway's route table has them.

    With --watch each change follows, with the reason why a route is gone, until Ctrl-C. With --json
    a line is the whole table ("change": "resync"), one route ("put"), or one that is gone
    ("delete"); --json alone prints the first of them. For example:

        box-bridge routes web
        box-bridge routes --watch
        box-bridge routes web --json | jq -r '.routes[].endpoint'
    """
    from bridge.cli.commands.routes import run_routes

    return asyncio.run(run_routes(service, (link or Link()).flags(), watch=watch, json=json))
