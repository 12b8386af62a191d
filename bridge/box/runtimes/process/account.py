"""The user that the instances of a service run as."""

from __future__ import annotations

import os
import pwd

from msgspec import Struct

from bridge import process_rights
from bridge.errors import ConfigError
from bridge.settings import Config


class Account(Struct, frozen=True, kw_only=True):
    """A user of this host. `ids` are the numbers of the user, its group and its further groups."""

    name: str
    ids: tuple[int, ...]
    home: str
    shell: str

    @property
    def uid(self) -> int:
        return self.ids[0]

    @property
    def gid(self) -> int:
        return self.ids[1]

    def environment(self) -> dict[str, str]:
        """The variables that depend on the user."""
        return {"HOME": self.home, "USER": self.name, "LOGNAME": self.name, "SHELL": self.shell}


def find_account(name: str) -> Account | None:
    """The user `name`; None if the Box itself runs as this user. Raises ConfigError for no user."""
    try:
        entry = pwd.getpwnam(name)
        groups = os.getgrouplist(name, entry.pw_gid)
    except (KeyError, ValueError, OSError) as exc:
        raise ConfigError(f"user = {name!r}", "this host has no such user") from exc
    if entry.pw_uid == os.geteuid():
        return None
    if entry.pw_uid == 0:
        raise ConfigError(f"user = {name!r}", "no instance may have more rights than its Box")
    return Account(
        name=name,
        ids=(entry.pw_uid, entry.pw_gid, *groups),
        home=entry.pw_dir,
        shell=entry.pw_shell,
    )


def check_accounts(config: Config) -> None:
    """Raise ConfigError for a service whose user does not exist, or that the Box may not become."""
    for name, service in config.services.items():
        if service.user and find_account(service.user) and not process_rights.can_change_user():
            raise ConfigError(
                f"[services.{name}] user = {service.user!r}",
                "this Box may not start programs as another user: run it as root, or with "
                "CAP_SETUID, CAP_SETGID, CAP_KILL and CAP_CHOWN",
            )
