"""The accounts and users of a fleet, as a part of nats-server's configuration. Pure.

FLEET has JetStream and the Boxes. All other users are in EDGE accounts without JetStream: one for
each role whose users have the same permissions, and one for each user of the other roles. Service
imports join an EDGE account to FLEET, for the subjects that its users may publish alone.

The reason is the reply subject, which a caller chooses freely and the server uses past the caller's
permissions. A reply to a request from an EDGE account stays in that account. Only an import carries
it further, so it reaches nothing that the user may not publish on anyway. One account for all of
them would not do: its imports are those of every user.

nats-server connects the imports of an account that a reload adds with the next reload only.
Therefore spare accounts wait for users that are added later.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from msgspec import Struct

from bridge.auth.roles import ANY, API, NAMED, Grants, Role, grants
from bridge.subjects import Subjects

FLEET_DOMAIN: Final = "fleet"
"""The JetStream domain by which the users of EDGE call FLEET's JetStream."""

SPARE: Final = 16
"""How many users with an account of their own may be added between two reloads."""

_FLEET: Final = "FLEET"
_EDGE_INBOX: Final = "_EDGE"
_FLEET_INBOX: Final = "_FLEET"
_MSG_NEXT: Final = f"{API}CONSUMER.MSG.NEXT."

SERVER: Final = """\
# A nats-server for one fleet, made by `box-bridge auth init`. Change this file as your site needs:
# add TLS, `listen` and `store_dir`. `box-bridge auth` rewrites accounts.conf alone.
#
#   nats-server -c nats-server.conf -p 4222 -sd /var/lib/nats

jetstream {
    # An acknowledged message is on the disk. With the default, two minutes, a crash of the
    # machine loses acknowledged messages.
    sync_interval: always
}

# The server drops a frozen client within 7 s; requests then go to live Boxes only.
ping_interval: "2s"
ping_max: 2

include accounts.conf
"""


class Member(Struct, frozen=True, kw_only=True):
    """A user: its role, its name, its public nkey, and the account that it is in."""

    role: Role
    name: str
    key: str
    account: str

    @property
    def inbox(self) -> str:
        """The prefix of the subjects for replies to this user alone."""
        return inbox(self.role, self.name)

    @property
    def domain(self) -> str:
        """The JetStream domain of this user's calls; empty in the account of the streams."""
        return "" if self.role is Role.BOX else FLEET_DOMAIN


def free_account(role: Role, members: Iterable[Member]) -> str:
    """The account for another user of `role`: the role's, or the first that no user has."""
    if role not in NAMED:
        return f"EDGE_{role.upper()}"
    if role is Role.BOX:
        return _FLEET
    taken = {member.account for member in members}
    return next(name for number in itertools.count(1) if (name := f"EDGE_{number}") not in taken)


def inbox(role: Role, name: str) -> str:
    """The inbox prefix of the user `name` of `role`."""
    tree = _FLEET_INBOX if role is Role.BOX else _EDGE_INBOX
    return f"{tree}.{name.replace('.', '_')}"


def accounts(subjects: Subjects, members: Sequence[Member]) -> str:
    """The text of accounts.conf for `members`."""
    boxes = [member for member in members if member.account == _FLEET]
    lines = [
        "# Made by `box-bridge auth`, which rewrites this file: change nothing here.",
        "accounts {",
        f"  {_FLEET} {{",
        "    jetstream: enabled",
        *_block("users", [_user(subjects, member) for member in boxes]),
        *_block("exports", _exports(subjects)),
        "  }",
    ]
    for account in _edges(members):
        users = [member for member in members if member.account == account]
        lines += [
            f"  {account} {{",
            *_block("users", [_user(subjects, member) for member in users]),
            *_block("imports", _imports(subjects, users)),
            "  }",
        ]
    return "\n".join([*lines, "}", ""])


def _edges(members: Sequence[Member]) -> Iterator[str]:
    """The EDGE accounts, the spare ones among them."""
    yield from (free_account(role, ()) for role in Role if role not in NAMED)
    own = {member.account for member in members if member.role in NAMED} - {_FLEET}
    last = max((int(account.removeprefix("EDGE_")) for account in own), default=0)
    yield from (f"EDGE_{number}" for number in range(1, last + SPARE + 1))


def in_domain(subject: str) -> str:
    """`subject` as a user of EDGE publishes it."""
    if subject.startswith(API):
        return f"$JS.{FLEET_DOMAIN}.API.{subject.removeprefix(API)}"
    return subject


def granted(subjects: Subjects, member: Member) -> Grants:
    """The permissions of `member` as the server's configuration has them."""
    rights = grants(member.role, member.name, subjects, inbox=member.inbox)
    if not member.domain:
        return rights
    return Grants(publish=tuple(map(in_domain, rights.publish)), subscribe=rights.subscribe)


def _exports(subjects: Subjects) -> list[str]:
    """What FLEET offers to the accounts of all roles, for any name."""
    services: dict[str, None] = {}
    streams: dict[str, None] = {}
    for role in Role:
        if role is not Role.BOX:
            rights = grants(role, ANY, subjects, inbox=f"{_EDGE_INBOX}.{ANY}")
            services |= dict.fromkeys(rights.publish)
            streams |= dict.fromkeys(rights.subscribe)
    lines = [_service_export(subject) for subject in services]
    return lines + [f"{{ stream: {_quoted(subject)} }}" for subject in streams]


def _imports(subjects: Subjects, members: Iterable[Member]) -> list[str]:
    """What the account of `members` takes from FLEET: exactly the permissions of its users."""
    services: dict[str, None] = {}
    streams: dict[str, None] = {}
    for member in members:
        rights = grants(member.role, member.name, subjects, inbox=member.inbox)
        services |= dict.fromkeys(rights.publish)
        streams |= dict.fromkeys(rights.subscribe)
    lines = [_service_import(subject) for subject in services]
    return lines + [_stream_import(subject) for subject in streams]


def _user(subjects: Subjects, member: Member) -> str:
    rights = granted(subjects, member)
    lists = (("publish", rights.publish), ("subscribe", rights.subscribe))
    body = "\n".join(
        f"        {act}: [\n"
        + "".join(f"          {_quoted(item)}\n" for item in items)
        + "        ]"
        for act, items in lists
    )
    title = f"# {member.role} {member.name}"
    return f"{title}\n      {{ nkey: {member.key}, permissions: {{\n{body}\n      }} }}"


def _service_export(subject: str) -> str:
    response = ", response: stream" if subject.startswith(_MSG_NEXT) else ""
    return f"{{ service: {_quoted(subject)}{response} }}"


def _service_import(subject: str) -> str:
    local = in_domain(subject)
    to = f", to: {_quoted(local)}" if local != subject else ""
    return f"{{ service: {{ account: {_FLEET}, subject: {_quoted(subject)} }}{to} }}"


def _stream_import(subject: str) -> str:
    return f"{{ stream: {{ account: {_FLEET}, subject: {_quoted(subject)} }} }}"


def _block(key: str, lines: Iterable[str]) -> list[str]:
    return [f"    {key}: [", *(f"      {line}" for line in lines), "    ]"]


def _quoted(subject: str) -> str:
    return json.dumps(subject)
