"""A directory with the users of a fleet: their secret seeds, and the server's configuration.

`users.json` lists the roles, names and public keys, and is the truth: accounts.conf is made from it
on every change. Each user has `NAME.nk`, its seed, and `NAME.json`, a context for `--context` with
all that a client needs. The directory has mode 0700 and each file 0600. Files are replaced as a
whole, so a reader, or a crash, never sees half of one. A lock orders concurrent changes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from bridge.auth.keys import create_key
from bridge.auth.roles import Role, check_member
from bridge.auth.server_config import SERVER, Member, accounts, free_account
from bridge.errors import ConfigError
from bridge.subjects import Subjects

USERS: Final = "users.json"
ACCOUNTS: Final = "accounts.conf"
SERVER_CONFIG: Final = "nats-server.conf"

_RESERVED: Final = (Path(USERS).stem,)  # names of other files
_FIRST: Final = (Role.GATEWAY, Role.CONSUMER, Role.RELAY, Role.OPERATOR)


class Users(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of `users.json`: the fleet's prefix, the server's URL and the users."""

    prefix: str
    url: str
    users: list[Member] = []


class AuthDirectory:
    """The directory `path`. Each method raises ConfigError for a directory that it cannot use."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def create(self, *, prefix: str, url: str, hosts: list[str]) -> list[Member]:
        """Make the directory with a user for each host and one for each role that needs no other
        name. Raises ConfigError if it has files already, and NameRefused.
        """
        wanted = [(Role.BOX, host) for host in dict.fromkeys(hosts)]
        wanted += [(role, str(role)) for role in _FIRST]
        for role, name in wanted:
            check_member(role, name)
            if role is Role.BOX and name in (*_FIRST, *_RESERVED):
                raise ConfigError(name, "cannot be a host's name: another user or file has it")
        Subjects(prefix=prefix)  # raises ConfigError
        with self._mapped_errors():
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._locked():
            with self._mapped_errors():
                if (self.path / USERS).exists():
                    raise ConfigError(
                        str(self.path), "has users already: use `box-bridge auth add ROLE NAME`"
                    )
                if any(self.path.iterdir()):
                    raise ConfigError(str(self.path), "is not empty: name a new directory")
                self.path.chmod(0o700)
            known = Users(prefix=prefix, url=url)
            for role, name in wanted:
                known = self._with_new_key(known, role, name)
            self._write(SERVER_CONFIG, SERVER)
            self._save(known)
        return known.users

    def read(self) -> Users:
        """The users."""
        file = self.path / USERS
        try:
            return msgspec.json.decode(file.read_bytes(), type=Users)
        except FileNotFoundError as exc:
            raise ConfigError(
                str(self.path), "has no users: make it with `box-bridge auth init`"
            ) from exc
        except OSError as exc:
            raise ConfigError(str(file), f"cannot be read: {exc.strerror}") from exc
        except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
            raise ConfigError(str(file), f"is damaged: {exc}") from exc

    def add(self, role: Role, name: str) -> Member:
        """Add a user. Raises ConfigError if the name is taken, and NameRefused."""
        with self._locked():
            known = self.read()
            for member in known.users:
                if member.name == name:
                    raise ConfigError(name, f"is a {member.role} already: choose another name")
            known = self._with_new_key(known, role, name)
            self._save(known)
        return known.users[-1]

    def rotate(self, name: str) -> Member:
        """Give a user a new key; the old one ends when the server reloads."""
        with self._locked():
            known = self.read()
            old = _find(known, name)
            rest = [member for member in known.users if member.name != name]
            known = msgspec.structs.replace(known, users=rest)
            known = self._with_new_key(known, old.role, name, old.account)
            self._save(known)
        return known.users[-1]

    def revoke(self, name: str) -> Member:
        """Remove a user and its files; the key ends when the server reloads."""
        with self._locked():
            known = self.read()
            old = _find(known, name)
            rest = [member for member in known.users if member.name != name]
            self._save(msgspec.structs.replace(known, users=rest))
            with self._mapped_errors():
                for file in (self.seed_file(name), self.context_file(name)):
                    file.unlink(missing_ok=True)
        return old

    def seed_file(self, name: str) -> Path:
        """The file with the seed of the user `name`."""
        return self.path / f"{name}.nk"

    def context_file(self, name: str) -> Path:
        """The context with which the user `name` connects."""
        return self.path / f"{name}.json"

    def _with_new_key(self, known: Users, role: Role, name: str, account: str = "") -> Users:
        check_member(role, name)
        if name in _RESERVED:
            raise ConfigError(name, "is the name of another file: choose another name")
        key = create_key()
        account = account or free_account(role, known.users)
        member = Member(role=role, name=name, key=key.public, account=account)
        context = {
            "description": f"{role} {name}",
            "url": known.url,
            "nkey": self.seed_file(name).name,
            "inbox_prefix": member.inbox,
            "jetstream_domain": member.domain,
        }
        given = {key: value for key, value in context.items() if value}
        self._write(self.seed_file(name).name, f"{key.seed}\n")
        self._write(self.context_file(name).name, json.dumps(given, indent=2) + "\n")
        return msgspec.structs.replace(known, users=[*known.users, member])

    def _save(self, known: Users) -> None:
        text = msgspec.json.format(msgspec.json.encode(known), indent=2).decode()
        self._write(USERS, f"{text}\n")
        self._write(ACCOUNTS, accounts(Subjects(prefix=known.prefix), known.users))

    def _write(self, name: str, text: str) -> None:
        """Replace the file `name`, durably; nobody else can read it at any moment."""
        with self._mapped_errors():
            handle, made = tempfile.mkstemp(prefix=f".{name}-", dir=self.path)  # mode 0600
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                Path(made).replace(self.path / name)
            except BaseException:
                Path(made).unlink(missing_ok=True)
                raise

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            with self._mapped_errors():
                lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
                stack.callback(os.close, lock)
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _mapped_errors(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as exc:
            raise ConfigError(
                str(self.path), "does not exist: make it with `box-bridge auth init`"
            ) from exc
        except OSError as exc:
            raise ConfigError(str(self.path), f"cannot be used: {exc.strerror}") from exc


def _find(known: Users, name: str) -> Member:
    for member in known.users:
        if member.name == name:
            return member
    names = ", ".join(member.name for member in known.users) or "none"
    raise ConfigError(name, f"is not a user; the users are: {names}")
