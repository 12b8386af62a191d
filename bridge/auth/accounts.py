"""The accounts of a fleet, their users, and the imports that join them. Pure.

FLEET has JetStream and the Boxes that decide. All other users are in EDGE accounts without
JetStream: one for each role whose users have the same permissions, and one for each user of the
other roles. Service imports join an EDGE account to FLEET, for the subjects that its users may
publish alone.

The reason is the reply subject, which a caller chooses freely and the server uses past the caller's
permissions. A reply to a request from an EDGE account stays in that account. Only an import carries
it further, so it reaches nothing that the user may not publish on anyway. One account for all of
them would not do: its imports are those of every user.

nats-server connects the imports of an account that a reload adds with the next reload only.
Therefore spare accounts wait for users that are added later.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from bridge.auth.roles import (
    ANY,
    API,
    DISCOVERY,
    NAMED,
    PROGRAMS,
    Grants,
    Role,
    covers,
    grants,
    requests,
)
from bridge.subjects import Subjects

FLEET: Final = "FLEET"
FLEET_DOMAIN: Final = "fleet"
"""The JetStream domain by which the users of EDGE call FLEET's JetStream."""

HUB_DOMAIN: Final = "hub"
"""The JetStream domain of the fleet's servers, to which leaf nodes send FLEET's calls. It is not
FLEET_DOMAIN: a server turns calls to its own domain into plain ones, in each account.
"""

SPARE: Final = 16
"""How many users with an account of their own may be added between two reloads."""

_EDGE_INBOX: Final = "_EDGE"
_FLEET_INBOX: Final = "_FLEET"
_SEVERAL_REPLIES: Final = (f"{API}CONSUMER.MSG.NEXT.", *DISCOVERY)


class Member(Struct, frozen=True, kw_only=True):
    """A user: its role, its name, its public nkey, and the account that it is in. `signer` is the
    public key that signed it, in operator mode.
    """

    role: Role
    name: str
    key: str
    account: str
    signer: str = ""

    @property
    def inbox(self) -> str:
        """The prefix of the subjects for replies to this user alone."""
        return inbox(self.role, self.name)

    @property
    def domain(self) -> str:
        """The JetStream domain of this user's calls; empty in the account of the streams."""
        return "" if self.role is Role.BOX else FLEET_DOMAIN


class User(Struct, frozen=True):
    """A member and its permissions, as the server checks them. A leaf node's are unlimited."""

    member: Member
    grants: Grants | None


class Export(Struct, frozen=True, kw_only=True):
    """A subject that FLEET offers: a service's requests, or a stream of messages. `several`: a
    request may get several replies.
    """

    subject: str
    service: bool
    several: bool = False


class Import(Struct, frozen=True, kw_only=True):
    """A subject of FLEET that an account uses, as `local`. With `share` FLEET learns the user that
    sent a request.
    """

    subject: str
    local: str
    service: bool
    share: bool = False


class Account(Struct, frozen=True, kw_only=True):
    """An account. Only FLEET has exports. With `remote_jetstream`, JetStream is on other servers:
    calls to it go to the fleet's domain.
    """

    name: str
    users: list[User]
    exports: list[Export] = []
    imports: list[Import] = []
    remote_jetstream: bool = False


def accounts(subjects: Subjects, members: Sequence[Member]) -> list[Account]:
    """The accounts of `members`, FLEET first."""
    durables = [item.name for item in members if item.role in (Role.DURABLE, Role.RELAY)]

    def users(account: str) -> list[User]:
        return [
            User(member, granted(subjects, member, durables))
            for member in members
            if member.account == account
        ]

    fleet = Account(name=FLEET, users=users(FLEET), exports=_exports(subjects))
    edges = [
        Account(
            name=name,
            users=users(name),
            imports=_imports(subjects, [item for item in members if item.account == name]),
        )
        for name in _edges(members)
    ]
    return [fleet, *edges]


def on_leaf(made: Iterable[Account]) -> list[Account]:
    """The accounts as a leaf node has them: JetStream is in the domain of the fleet's servers."""
    return [
        replace(
            account,
            remote_jetstream=account.name == FLEET,
            users=[
                User(user.member, _in_domain(user.grants, HUB_DOMAIN)) for user in account.users
            ],
            exports=[
                replace(item, subject=in_domain(item.subject, HUB_DOMAIN))
                for item in account.exports
            ],
            imports=[
                replace(item, subject=in_domain(item.subject, HUB_DOMAIN))
                for item in account.imports
            ],
        )
        for account in made
    ]


def free_account(role: Role, members: Iterable[Member]) -> str:
    """The account for another user of `role`: the role's, or the first that no user has."""
    if role in (Role.BOX, Role.LEAF):
        return FLEET
    if role not in NAMED:
        return f"EDGE_{role.upper()}"
    taken = {member.account for member in members}
    return next(name for number in itertools.count(1) if (name := f"EDGE_{number}") not in taken)


def inbox(role: Role, name: str) -> str:
    """The inbox prefix of the user `name` of `role`."""
    tree = _FLEET_INBOX if role is Role.BOX else _EDGE_INBOX
    return f"{tree}.{name.replace('.', '_')}"


def in_domain(subject: str, domain: str = FLEET_DOMAIN) -> str:
    """`subject` in a JetStream domain: by default as a user of EDGE publishes it."""
    if subject.startswith(API):
        return f"$JS.{domain}.API.{subject.removeprefix(API)}"
    return subject


def granted(subjects: Subjects, member: Member, durables: Iterable[str] = ()) -> Grants | None:
    """The permissions of `member` as the server checks them; None if it has no limits."""
    if member.role is Role.LEAF:
        return None
    rights = grants(member.role, member.name, subjects, inbox=member.inbox, durables=durables)
    return _in_domain(rights, member.domain) if member.domain else rights


def _in_domain(rights: Grants | None, domain: str) -> Grants | None:
    if rights is None:
        return None
    return Grants(
        publish=tuple(in_domain(subject, domain) for subject in rights.publish),
        subscribe=rights.subscribe,
        deny=tuple(in_domain(subject, domain) for subject in rights.deny),
    )


def _edges(members: Sequence[Member]) -> Iterator[str]:
    """The EDGE accounts, the spare ones among them."""
    common = [role for role in PROGRAMS if role not in NAMED]
    yield from (free_account(role, ()) for role in common)
    own = {member.account for member in members if member.role in NAMED} - {FLEET}
    last = max((int(account.removeprefix("EDGE_")) for account in own), default=0)
    yield from (f"EDGE_{number}" for number in range(1, last + SPARE + 1))


def _exports(subjects: Subjects) -> list[Export]:
    """What FLEET offers to the accounts of all roles, for any name."""
    services: dict[str, None] = {}
    streams: dict[str, None] = {}
    for role in PROGRAMS:
        if role is not Role.BOX:
            rights = grants(role, ANY, subjects, inbox=f"{_EDGE_INBOX}.{ANY}")
            services |= dict.fromkeys(rights.publish)
            streams |= dict.fromkeys(rights.subscribe)
    found = [
        Export(subject=item, service=True, several=item.startswith(_SEVERAL_REPLIES))
        for item in services
        # A server in operator mode refuses an account whose exports overlap.
        if not any(other != item and covers(other, item) for other in services)
    ]
    return found + [Export(subject=item, service=False) for item in streams]


def _imports(subjects: Subjects, members: Iterable[Member]) -> list[Import]:
    """What the account of `members` takes from FLEET: exactly the permissions of its users."""
    services: dict[str, None] = {}
    streams: dict[str, None] = {}
    for member in members:
        rights = grants(member.role, member.name, subjects, inbox=member.inbox)
        services |= dict.fromkeys(rights.publish)
        streams |= dict.fromkeys(rights.subscribe)
    shared = requests(subjects)
    found = [
        Import(subject=item, local=in_domain(item), service=True, share=item in shared)
        for item in services
    ]
    return found + [Import(subject=item, local=item, service=False) for item in streams]
