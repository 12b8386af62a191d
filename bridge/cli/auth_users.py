"""What the verbs of `auth` share: the directory that they work on, and the table of users."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct
from rich.text import Text

from bridge.auth.directory import USERS, AuthDirectory
from bridge.auth.server_config import Member
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
            context=str(made.context_file(user.name)),
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
