"""A directory with the users of a fleet: their secret seeds, and the server's configuration.

`users.json` lists the roles, names and public keys, and is the truth: accounts.conf is made from it
on every change. Each user has `NAME.nk`, its seed, and `NAME.json`, a context for `--context` with
all that a client needs. In operator mode the seed is in `NAME.creds`, and `keys.json` has the keys
that sign. The directory has mode 0700 and each file 0600. Files are replaced as a whole, so a
reader, or a crash, never sees half of one. A lock orders concurrent changes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from bridge.auth import jwt
from bridge.auth.accounts import FLEET, Account, Member, accounts, free_account, on_leaf
from bridge.auth.keys import KeyKind, create_key
from bridge.auth.roles import Role, check_member
from bridge.auth.server_config import accounts_conf, cluster_server, leaf_server, server
from bridge.auth.site import KEYS, LEAF_PORT, RESERVED, SERVER_CONFIG, USERS, Site
from bridge.errors import ConfigError
from bridge.subjects import Subjects

ACCOUNTS: Final = "accounts.conf"
LEAF_ACCOUNTS: Final = "leaf-accounts.conf"

T = TypeVar("T")


class Users(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of `users.json`: the fleet's prefix, the servers' URL and the users. `hubs` are
    the URLs to which leaf nodes connect. `operator`: the server is in operator mode.
    """

    prefix: str
    url: str
    users: list[Member] = []
    hubs: list[str] = []
    operator: bool = False


class AuthDirectory:
    """The directory `path`. Each method raises ConfigError for a directory that it cannot use."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def create(self, site: Site) -> list[Member]:
        """Make the directory with the users of `site`, and one for each role that needs no other
        name. Raises ConfigError if it has files already, and NameRefused.
        """
        wanted = site.members()
        Subjects(prefix=site.prefix)  # raises ConfigError
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
            known = Users(prefix=site.prefix, url=site.url, hubs=site.hubs, operator=site.operator)
            for role, name in wanted:
                known = self._with_new_key(known, role, name)
            self._write_servers(site)
            self._save(known)
        return known.users

    def read(self) -> Users:
        """The users."""
        return self._read(USERS, Users)

    def add(self, role: Role, name: str) -> Member:
        """Add a user. Raises ConfigError if the name is taken, and NameRefused."""
        with self._locked():
            known = self.read()
            for member in known.users:
                if member.name == name:
                    raise ConfigError(name, f"is a {member.role} already: choose another name")
            if role is Role.LEAF and not known.hubs:
                why = "needs a server for leaf nodes: make the directory with `auth init --leaf`"
                raise ConfigError(name, why)
            known = self._with_new_key(known, role, name)
            self._save(known)
        return known.users[-1]

    def rotate(self, name: str) -> Member:
        """Give a user a new key; the old one ends when the server reloads."""
        with self._locked():
            known = self.read()
            old = _find(known, name)
            rest = [member for member in known.users if member.name != name]
            known = replace(known, users=rest)
            known = self._with_new_key(known, old.role, name, old.account)
            self._save(known)
        return known.users[-1]

    def revoke(self, name: str) -> Member:
        """Remove a user and its files; the key ends when the server reloads."""
        with self._locked():
            known = self.read()
            old = _find(known, name)
            rest = [member for member in known.users if member.name != name]
            self._save(replace(known, users=rest))
            with self._mapped_errors():
                for file in (
                    *self.secret_files(name),
                    self.context_file(name),
                    self.leaf_file(name),
                ):
                    file.unlink(missing_ok=True)
        return old

    def seed_file(self, name: str) -> Path:
        """The file with the seed of the user `name`."""
        return self.path / f"{name}.nk"

    def secret_files(self, name: str) -> tuple[Path, Path]:
        """The files that may have the seed of the user `name`: the second one in operator mode."""
        return self.seed_file(name), self.path / f"{name}.creds"

    def context_file(self, name: str) -> Path:
        """The context with which the user `name` connects. A leaf node has a configuration."""
        return self.path / f"{name}.json"

    def leaf_file(self, name: str) -> Path:
        """The server's configuration of the leaf node `name`."""
        return self.path / f"{name}.conf"

    def _files(self, name: str) -> tuple[Path, ...]:
        """Each file that the user `name` may have."""
        return *self.secret_files(name), self.context_file(name), self.leaf_file(name)

    def _with_new_key(self, known: Users, role: Role, name: str, account: str = "") -> Users:
        check_member(role, name)
        if name in RESERVED:
            raise ConfigError(name, "is the name of another file: choose another name")
        key = create_key()
        account = account or free_account(role, known.users)
        member = Member(role=role, name=name, key=key.public, account=account)
        seed, creds = self.secret_files(name)
        if known.operator:
            signer = create_key(KeyKind.ACCOUNT)
            member = replace(member, signer=signer.public)
            owner = self._signing_keys([account]).accounts[account]
            text = jwt.creds(owner, signer, member, key.seed, at=int(time.time()))
            self._write(creds.name, text)
        elif role is not Role.LEAF:
            self._write(seed.name, f"{key.seed}\n")
        if role is Role.LEAF:
            self._write_leaf(known, name, "" if known.operator else key.seed)
        else:
            secret = {"creds": creds.name} if known.operator else {"nkey": seed.name}
            self._write_context(member, {"url": known.url, **secret})
        return replace(known, users=[*known.users, member])

    def _write_context(self, member: Member, connection: Mapping[str, str]) -> None:
        context = {
            "description": f"{member.role} {member.name}",
            **connection,
            "inbox_prefix": member.inbox,
            "jetstream_domain": member.domain,
        }
        given: dict[str, str | bool] = {key: value for key, value in context.items() if value}
        if member.role is Role.BOX:
            given["request_info"] = True  # no client shares its account
        self._write(self.context_file(member.name).name, json.dumps(given, indent=2) + "\n")

    def _write_leaf(self, known: Users, name: str, seed: str) -> None:
        account = FLEET
        if known.operator:
            account = self._signing_keys([FLEET]).accounts[FLEET].public
        text = leaf_server(name, known.hubs, account=account, seed=seed)
        self._write(self.leaf_file(name).name, text)

    def _write_servers(self, site: Site) -> None:
        text = server(leaf_listen=f"0.0.0.0:{LEAF_PORT}" if site.hubs else "")
        if not site.servers:
            self._write(SERVER_CONFIG, text)
        secret = secrets.token_urlsafe(24)
        for name in site.servers:
            own = cluster_server(name, site.servers, cluster=site.prefix, secret=secret)
            self._write(f"{name}.conf", text + own)

    def _save(self, known: Users) -> None:
        self._write_json(USERS, known)
        made = accounts(Subjects(prefix=known.prefix), known.users)
        self._write(ACCOUNTS, self._accounts_text(known, made))
        if known.hubs:
            self._write(LEAF_ACCOUNTS, self._accounts_text(known, on_leaf(made)))

    def _accounts_text(self, known: Users, made: list[Account]) -> str:
        if not known.operator:
            return accounts_conf(made)
        keys = self._signing_keys([account.name for account in made])
        return jwt.operator_conf(keys, made, at=int(time.time()))

    def _signing_keys(self, names: list[str]) -> jwt.SigningKeys:
        """The keys of operator mode, among them those of the accounts `names`."""
        exists = (self.path / KEYS).exists()
        keys = self._read(KEYS, jwt.SigningKeys) if exists else jwt.create_keys(int(time.time()))
        known = jwt.with_accounts(keys, names)
        if known != keys or not exists:
            self._write_json(KEYS, known)
        return known

    def _read(self, name: str, kind: type[T]) -> T:
        file = self.path / name
        try:
            return msgspec.json.decode(file.read_bytes(), type=kind)
        except FileNotFoundError as exc:
            raise ConfigError(
                str(self.path), "has no users: make it with `box-bridge auth init`"
            ) from exc
        except OSError as exc:
            raise ConfigError(str(file), f"cannot be read: {exc.strerror}") from exc
        except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
            raise ConfigError(str(file), f"is damaged: {exc}") from exc

    def _write_json(self, name: str, value: Struct) -> None:
        text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
        self._write(name, f"{text}\n")

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
