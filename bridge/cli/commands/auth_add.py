"""`auth add`: one more NATS user."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from bridge.cli.exit_codes import DONE
from bridge.cli.flags import AuthDirOption, Json, MemberRole


def auth_add(
    role: Annotated[
        MemberRole,
        Parameter(help="What the user is for."),
    ],
    name: Annotated[
        str,
        Parameter(
            help="The user. Of a box or a runner: its host. Of a durable or a relay: its durable "
            "name. Of an instance: SERVICE, or SERVICE.INSTANCE-ID."
        ),
    ],
    /,
    *,
    directory: AuthDirOption = None,
    json: Json = False,
) -> int:
    """Add a NATS user with the rights of a role.

    The running server takes it after a reload. For example:

        box-bridge auth add durable mailer --dir auth
        nats-server --signal reload
    """
    from bridge.auth.directory import AuthDirectory
    from bridge.auth.roles import Role
    from bridge.cli.auth_users import RELOAD, auth_directory, print_users

    made = AuthDirectory(auth_directory(directory))
    print_users(made, [made.add(Role(role), name)], json=json, note=RELOAD)
    return DONE
