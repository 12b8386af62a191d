"""`auth rotate`: a new key for a NATS user."""

from __future__ import annotations

from bridge.cli.exit_codes import DONE
from bridge.cli.flags import AuthDirOption, Json, UserName


def auth_rotate(name: UserName, /, *, directory: AuthDirOption = None, json: Json = False) -> int:
    """Give a NATS user a new key; a reload ends the old one.

    The user's clients reconnect with the new file, which they read at each attempt.
    So copy the file to the user's host, then reload the server. For example:

        box-bridge auth rotate box-a --dir auth
    """
    from bridge.auth.directory import AuthDirectory
    from bridge.cli.auth_users import RELOAD, auth_directory, print_users

    made = AuthDirectory(auth_directory(directory))
    print_users(made, [made.rotate(name)], json=json, note=RELOAD)
    return DONE
