"""What the verbs of `auth` share: the directory that they work on, and the table of users."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct
from rich.text import Text

from bridge.auth.accounts import Member
from bridge.auth.directory import AuthDirectory
from bridge.auth.roles import Role
from bridge.auth.site import USERS
from bridge.console import out, plain_table, print_json
from bridge.errors import ConfigError

RELOAD: Final = "Reload the server: nats-server --signal reload, or SIGHUP"


class _User(Struct, frozen=True, kw_only=True):
    name: str
    role: str
    key: str
    context: str


class _Listed(Struct, frozen=True, kw_only=True):
    ok: bool
    directory: str
    users: list[_User]


def auth_directory(given: Path | None) -> Path:
    """The directory that `--dir` names; without it, this one or its `auth`, if it has users."""
    if given is not None:
        return given
    for found in (Path(), Path("auth")):
        if (found / USERS).exists():
            return found
    raise ConfigError("--dir", "is needed: name the directory that `auth init` made")


def print_users(
    made: AuthDirectory, users: Sequence[Member], *, json: bool, note: str = ""
) -> None:
    """Print users with their contexts, then `note`."""
    rows = [
        _User(
            name=user.name,
            role=str(user.role),
            key=user.key,
            context=str(_file(made, user)),
        )
        for user in users
    ]
    if json:
        print_json(_Listed(ok=True, directory=str(made.path), users=rows))
        return
    table = plain_table("NAME", "ROLE", "PUBLIC KEY", "CONTEXT")
    for row in rows:
        table.add_row(*map(Text, (row.name, row.role, row.key, row.context)))
    out.print(table)
    if note:
        out.print(note)


def _file(made: AuthDirectory, user: Member) -> Path:
    """The file with which `user` connects: a leaf node has a server's configuration."""
    if user.role is Role.LEAF:
        return made.leaf_file(user.name)
    return made.context_file(user.name)
