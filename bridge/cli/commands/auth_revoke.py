"""`auth revoke`: remove a NATS user."""

from __future__ import annotations

from bridge.cli.exit_codes import DONE
from bridge.cli.flags import AuthDirOption, Json, UserName


def auth_revoke(name: UserName, /, *, directory: AuthDirOption = None, json: Json = False) -> int:
    """Remove a NATS user and its files.

    The server disconnects the user's clients when it reloads. For example:

        box-bridge auth revoke mailer --dir auth
    """
    from bridge.auth.directory import AuthDirectory
    from bridge.cli.auth_users import RELOAD, auth_directory
    from bridge.cli.orders import print_done

    gone = AuthDirectory(auth_directory(directory)).revoke(name)
    print_done(f"{gone.role} {gone.name} is revoked. {RELOAD}", json=json)
    return DONE
