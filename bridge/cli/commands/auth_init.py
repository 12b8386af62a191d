"""`auth init`: users and a server configuration for a fleet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from bridge.cli.exit_codes import DONE
from bridge.cli.flags import AuthDir, Json
from bridge.subjects import DEFAULT_PREFIX


def auth_init(
    directory: AuthDir,
    /,
    *,
    hosts: Annotated[
        str, Parameter(help="The hosts, separated by commas: each gets a user of its own.")
    ] = "",
    runners: Annotated[
        str, Parameter(help='The hosts with role = "runner", which decide nothing.')
    ] = "",
    cluster: Annotated[
        str,
        Parameter(help="The servers of a cluster, as a=HOST:PORT,b=HOST:PORT: ports for routes."),
    ] = "",
    leaf: Annotated[
        str, Parameter(help="The leaf nodes, separated by commas: NATS servers near hosts.")
    ] = "",
    jwt: Annotated[
        bool, Parameter(negative="", help="Operator mode: users have credentials files with JWTs.")
    ] = False,
    prefix: Annotated[str, Parameter(help="First token of the fleet's subjects.")] = DEFAULT_PREFIX,
    server: Annotated[
        str | None,
        Parameter(
            name=["--server", "-s"],
            help="The NATS URL that the contexts name. Default: port 4222 of the servers.",
        ),
    ] = None,
    json: Json = False,
) -> int:
    """Make the NATS users of a fleet, and a server's configuration.

    Each user has the rights of its role and no more. DIR gets nats-server.conf,
    and for each user NAME.nk, its secret, and NAME.json, a context with which it
    connects. The users are one for each host, and gateway, consumer, relay and
    operator. For example:

        box-bridge auth init auth --hosts box-a,box-b
        nats-server -c auth/nats-server.conf -sd /var/lib/nats
        box-bridge scale web 3 --context $PWD/auth/operator.json

    With --cluster each server has NAME.conf, and with --leaf each leaf node. Copy
    to each host its own two files alone. Only their owner can read them.
    """
    from bridge.auth.directory import AuthDirectory
    from bridge.auth.site import names, plan_site
    from bridge.cli.auth_users import print_users

    site = plan_site(
        prefix=prefix,
        url=server,
        hosts=names(hosts),
        runners=names(runners),
        cluster=cluster,
        leaves=names(leaf),
        operator=jwt,
    )
    made = AuthDirectory(Path(directory))
    users = made.create(site)
    configs = [str(made.path / file) for file in site.server_files]
    starts = [f"nats-server -c {config} -sd STORE" for config in configs]
    note = f"Start the server: {starts[0]}"
    if len(starts) > 1:
        note = "\n".join(["Start the servers, with accounts.conf beside each:", *starts])
    print_users(made, users, json=json, note=note)
    return DONE
