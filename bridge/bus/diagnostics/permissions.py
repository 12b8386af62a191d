"""The permissions that a NATS user has, beside those that its role needs.

A server reports a denial only by an `-ERR` on the connection. Therefore each subject of
`bridge.auth.roles` is tried, with messages that change nothing:

- a message for a stream names another stream in a header, so that the stream refuses it;
- a request to JetStream is not JSON;
- a request to a Box has expired;
- names of others are `box-doctor`, which does not exist.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from typing import Final

from msgspec import Struct, field

from bridge.auth.roles import API, Role, allowed, everything, grants, requests
from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.jetstream.api import api_subject
from bridge.errors import BusError, NotPermitted
from bridge.protocol import ScaleRequest, encode
from bridge.settings import NatsConfig
from bridge.subjects import EXPIRES_AT, Subjects
from bridge.tasks import task_scope

NOBODY: Final = "box-doctor"  # a service, instance, stream and consumer that do not exist

_PATIENCE: Final = 4.0  # seconds
_SETTLE: Final = 0.05  # seconds for the tasks to process the server's errors
_NOT_JSON: Final = b"{box-bridge doctor"  # text without the brace would be a pull of one message
_ELSEWHERE: Final = {"Nats-Expected-Stream": NOBODY}
_EXPIRED: Final = {EXPIRES_AT: "1970-01-01T00:00:01Z"}


class Right(Struct, frozen=True, kw_only=True):
    """A permission: the subjects to allow, in NATS syntax, and the message that tries it."""

    allow: str
    subject: str
    data: bytes = _NOT_JSON
    headers: Mapping[str, str] = field(default_factory=dict)


class Rights(Struct, frozen=True, kw_only=True):
    """Permissions to publish and to subscribe."""

    publish: list[Right]
    subscribe: list[Right]


def needed(settings: NatsConfig, role: Role, name: str) -> Rights:
    """The permissions that the user `name` of `role` needs."""
    subjects = settings.subjects
    granted = grants(role, name, subjects, inbox=settings.inbox_prefix)
    publish = [*granted.publish]
    if role is Role.BOX:
        publish += [f"{prefix.rstrip('.')}.>" for prefix in settings.reply_prefixes]
    return Rights(
        publish=[_attempt(subjects, allow) for allow in publish],
        subscribe=[Right(allow=allow, subject=allow) for allow in granted.subscribe],
    )


def surplus(settings: NatsConfig, role: Role, name: str) -> Rights:
    """The permissions of other roles, and of no role, which this user should not have."""
    subjects = settings.subjects
    own = needed(settings, role, name)
    every = everything(subjects)
    publish = [right.allow for right in own.publish]
    subscribe = [right.allow for right in own.subscribe]
    return Rights(
        publish=[
            right
            for right in (_attempt(subjects, allow) for allow in every.publish)
            if not allowed(publish, right.subject)
        ],
        subscribe=[
            Right(allow=allow, subject=subject)
            for allow in every.subscribe
            if not allowed(subscribe, subject := _concrete(allow))
        ],
    )


async def lacking(connection: Connection, rights: Rights) -> list[str]:
    """The permissions of `rights` that this connection's user lacks: ``publish box.events.*``, …

    Raises CutOff and NoReply if the server does not answer.
    """
    denied = await _denials(connection, rights)
    return _lines(
        connection,
        [right for right in rights.publish if right in denied.publish],
        [right for right in rights.subscribe if right in denied.subscribe],
    )


async def excess(connection: Connection, rights: Rights) -> list[str]:
    """The permissions of `rights` that this connection's user has. Raises as `lacking` does."""
    denied = await _denials(connection, rights)
    return _lines(
        connection,
        [right for right in rights.publish if right not in denied.publish],
        [right for right in rights.subscribe if right not in denied.subscribe],
    )


def config_line(named: Iterable[str], *, deny: bool = False) -> str:
    """The permissions that `lacking` or `excess` named, as a line of a user's `permissions` in the
    server's configuration.
    """
    acts: dict[str, list[str]] = {}
    for line in named:
        act, _, subject = line.partition(" ")
        acts.setdefault(act, []).append(subject)
    kind = "deny" if deny else "allow"
    lists = [f"{act}: {{ {kind}: {json.dumps(subjects)} }}" for act, subjects in acts.items()]
    return ", ".join(lists)


async def _denials(connection: Connection, rights: Rights) -> Rights:
    """Those of `rights` that the server denies."""
    listeners = [await connection.listen(right.subject, _ignore) for right in rights.subscribe]
    try:
        async with task_scope() as tasks:
            attempts = [
                (right, tasks.create_task(_denied(connection, right))) for right in rights.publish
            ]
            # A denial arrives before the PONG of a later PING, which the second one is.
            await connection.flush(_PATIENCE)
            await connection.flush(_PATIENCE)
            if attempts:
                await asyncio.wait([task for _, task in attempts], timeout=_SETTLE)
            return Rights(
                publish=[right for right, task in attempts if task.done() and task.result()],
                subscribe=[
                    right
                    for right, listener in zip(rights.subscribe, listeners, strict=True)
                    if listener.denied
                ],
            )
    finally:
        for listener in listeners:
            await listener.close()


async def _denied(connection: Connection, right: Right) -> bool:
    """Whether the user may not publish there. After any other reply the message was sent."""
    subject = _in_domain(connection, right.subject)
    try:
        await connection.request(
            subject, right.data, headers=right.headers or None, timeout=_PATIENCE
        )
    except NotPermitted:
        return True
    except BusError:
        return False
    return False


def _lines(
    connection: Connection, publish: Iterable[Right], subscribe: Iterable[Right]
) -> list[str]:
    lines = [f"publish {_in_domain(connection, right.allow)}" for right in publish]
    lines += [f"subscribe {right.allow}" for right in subscribe]
    return list(dict.fromkeys(lines))


def _ignore(message: Message) -> None:
    """Ignore a message: it is for other subscribers."""


def _in_domain(connection: Connection, subject: str) -> str:
    head, api, call = subject.partition(API)
    return api_subject(connection, call) if api and not head else subject


def _attempt(subjects: Subjects, allow: str) -> Right:
    """The message that tries to publish on `allow`, and that changes nothing."""
    subject = _concrete(allow)
    if allow in requests(subjects):
        data = encode(ScaleRequest(service=NOBODY, replicas=0))
        return Right(allow=allow, subject=subject, data=data, headers=_EXPIRED)
    if allow.startswith((f"{API}INFO", f"{API}STREAM.INFO.")):
        return Right(allow=allow, subject=subject, data=b"")
    if allowed(_stored(subjects), subject):
        return Right(allow=allow, subject=subject, headers=_ELSEWHERE)
    return Right(allow=allow, subject=subject)


def _stored(subjects: Subjects) -> tuple[str, ...]:
    """The subjects that streams take."""
    return (subjects.all_events, *subjects.all_registrations, subjects.all_dead, "$KV.>")


def _concrete(allow: str) -> str:
    """A subject that `allow` matches, of names that do not exist."""
    return ".".join(NOBODY if part in ("*", ">") else part for part in allow.split("."))
