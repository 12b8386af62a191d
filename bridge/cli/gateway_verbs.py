"""The verbs of a gateway: asking for replicas, and seeing what becomes of them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from bridge.cli.flags import ConfigFile, Json, Link, pairs
from bridge.protocol import U32_MAX

_U8 = Number(gte=0, lte=255)
_U32 = Number(gte=0, lte=U32_MAX)


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
    from bridge.cli.journal import JournalView
    from bridge.cli.ps import run_ps

    flags, journal = (link or Link()).flags(), JournalView(config, data_dir)
    return asyncio.run(run_ps(service, flags, journal, watch=watch, local=local, json=json))


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
