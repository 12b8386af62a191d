"""The reference of roles: the subjects of each, from the one table of permissions."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final

from bridge.auth.roles import ANY, MEANINGS, NAMED, PROGRAMS, Grants, Role, grants
from bridge.subjects import Subjects

_INTRODUCTION: Final = """\
# Roles

`box-bridge auth` makes NATS users of these roles, and `box-bridge doctor --role` checks them.
[NATS permissions](permissions.md) explains how.

`NAME` is the name of the user, and `box` the prefix of the fleet. `INBOX` is the inbox prefix of
the user. Only a `box` sends its JetStream calls as listed. Every other user sends them to the
domain of the fleet's account: `$JS.fleet.API.…` instead of `$JS.API.…`.

A user that may create consumers on the stream of events may not create one with the name of a
`durable` or a `relay`: with that call it could change them, or end them.

"""
_ONE_ACCOUNT: Final = """\
## Without accounts

This configuration has the Box box-a and a gateway in one account. It is shorter, but it protects
less. The server answers a request on any reply subject that the caller chooses, past the caller's
permissions. So a gateway can make the server write records.

"""
_SUBJECTS: Final = Subjects()


def page() -> str:
    """The whole page."""
    sections = [_section(role) for role in PROGRAMS]
    return _INTRODUCTION + "\n".join(sections) + _ONE_ACCOUNT + f"```\n{one_account()}```\n"


def one_account() -> str:
    """A server's configuration with a Box and a gateway in one account."""
    users = [
        _user("box", grants(Role.BOX, "box-a", _SUBJECTS, inbox="_INBOX")),
        _user("gateway", grants(Role.GATEWAY, ANY, _SUBJECTS, inbox="_INBOX")),
    ]
    return "authorization {\n  users: [\n" + "".join(users) + "  ]\n}\n"


def _section(role: Role) -> str:
    name = "NAME" if role in NAMED else ANY
    granted = grants(role, name, _SUBJECTS, inbox="INBOX")
    lists = [
        f"It may {act}:\n\n" + "".join(f"- `{subject}`\n" for subject in subjects)
        for act, subjects in (("publish", granted.publish), ("subscribe", granted.subscribe))
    ]
    return f"## {role}\n\nThis user {MEANINGS[role]}.\n\n" + "\n".join(lists)


def _user(name: str, granted: Grants) -> str:
    return (
        f"    {{ user: {name}, password: ${name.upper()}_PASSWORD, permissions: {{\n"
        f"        publish: {_list(granted.publish)}\n"
        f"        subscribe: {_list(granted.subscribe)}\n"
        "    } }\n"
    )


def _list(subjects: Iterable[str]) -> str:
    lines = "".join(f"          {json.dumps(subject)}\n" for subject in subjects)
    return f"[\n{lines}        ]"
