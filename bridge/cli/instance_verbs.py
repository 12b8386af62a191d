"""The verb of an instance: having gateways know a program that knows nothing of NATS."""

from __future__ import annotations

import asyncio
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from bridge.cli.flags import Link, pairs

_SECONDS = Number(gte=0, lte=86400)


def register(
    *command: Annotated[
        str, Parameter(allow_leading_hyphen=True, help="After --: the program and its arguments.")
    ],
    service: Annotated[
        str | None, Parameter(help="The service that it is an instance of. Default: BOX_SERVICE.")
    ] = None,
    endpoint: Annotated[
        str | None,
        Parameter(help="host:port where gateways reach it. Default: BOX_ADDRESS and PORT."),
    ] = None,
    id: Annotated[  # noqa: A002 (the flag's name)
        str | None,
        Parameter(name="--id", help="Default: BOX_INSTANCE_ID, or the service and random letters."),
    ] = None,
    metadata: Annotated[
        list[str] | None, Parameter(negative="", help="KEY=VALUE; may be given again.")
    ] = None,
    probe: Annotated[
        str, Parameter(help="What says that it serves: tcp (it takes connections) or http:/path.")
    ] = "tcp",
    probe_interval: Annotated[
        float, Parameter(validator=Number(gt=0, lte=86400), help="Seconds between probes.")
    ] = 5.0,
    start_timeout: Annotated[
        float, Parameter(validator=_SECONDS, help="Seconds until it must serve.")
    ] = 60.0,
    deregister_delay: Annotated[
        float | None,
        Parameter(
            validator=_SECONDS,
            help="Seconds that it serves on when withdrawn. Default: 1, or 0 under a Box.",
        ),
    ] = None,
    grace: Annotated[
        float, Parameter(validator=_SECONDS, help="Seconds from asking it to end to SIGKILL.")
    ] = 10.0,
    link: Link | None = None,
) -> int:
    """Run any program, and have gateways know it as an instance while it serves.

    It is registered when the probe passes, marked unhealthy while the probe fails three times
    running, and withdrawn at once when it ends. SIGTERM and Ctrl-C withdraw it first, and reach it
    when gateways have let go; once more ends it at once. Other signals it gets as they come. The
    exit code is the program's, 128 + n if signal n ended it. For example:

        box-bridge register --service web --endpoint 10.0.0.5:8080 --probe http:/healthz \\
            -- ./server --port 8080

    Under a Box, for a service with registration = "self":

        command = ["box-bridge", "register", "--", "./server", "--port", "{port}"]
    """
    from bridge.cli.commands.register import RegisterOptions, run_register

    wanted = RegisterOptions(
        command=command,
        service=service,
        endpoint=endpoint,
        instance_id=id,
        metadata=pairs("--metadata", metadata),
        probe=probe,
        probe_interval=probe_interval,
        start_timeout=start_timeout,
        deregister_delay=deregister_delay,
        grace=grace,
    )
    asyncio.set_event_loop_policy(None)  # uvloop starts no child in a process group of its own
    return asyncio.run(run_register(wanted, (link or Link()).flags()))
