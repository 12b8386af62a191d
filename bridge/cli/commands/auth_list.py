"""`auth list`: the NATS users of a fleet."""

from __future__ import annotations

from bridge.cli.exit_codes import DONE
from bridge.cli.flags import AuthDirOption, Json


def auth_list(*, directory: AuthDirOption = None, json: Json = False) -> int:
    """List the NATS users, with their roles and public keys.

    For example:

        box-bridge auth list --dir auth
    """
    from bridge.auth.directory import AuthDirectory
    from bridge.cli.auth_users import auth_directory, print_users

    made = AuthDirectory(auth_directory(directory))
    print_users(made, made.read().users, json=json)
    return DONE
