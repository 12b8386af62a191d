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
    prefix: Annotated[str, Parameter(help="First token of the fleet's subjects.")] = DEFAULT_PREFIX,
    server: Annotated[
        str, Parameter(name=["--server", "-s"], help="The NATS URL that the contexts name.")
    ] = "nats://127.0.0.1:4222",
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

    Copy to each host its own two files alone. Only their owner can read them.
    """
    from bridge.auth.directory import SERVER_CONFIG, AuthDirectory
    from bridge.cli.auth_users import print_users
    from bridge.nats_url import parse_urls

    parse_urls(server)
    names = [name.strip() for name in hosts.split(",") if name.strip()]
    made = AuthDirectory(Path(directory))
    users = made.create(prefix=prefix, url=server, hosts=names)
    note = f"Start the server: nats-server -c {made.path / SERVER_CONFIG} -sd STORE"
    print_users(made, users, json=json, note=note)
    return DONE
