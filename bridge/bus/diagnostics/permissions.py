"""The permissions that a NATS user needs, and which of them it has.

A server reports a denial only by an `-ERR` on the connection. Therefore each subject is tried, with
messages that change nothing:

- a message for a stream names another stream in a header, so that the stream refuses it;
- a request to JetStream is not JSON;
- a request to a Box has expired;
- a message about an instance names the service `box-doctor`, which does not exist.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final

from msgspec import Struct, field

from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.jetstream.api import api_subject
from bridge.errors import BusError, NotPermitted
from bridge.protocol import InstancesRequest, ScaleRequest, encode
from bridge.settings import NatsConfig
from bridge.subjects import EXPIRES_AT, INBOXES, Subjects
from bridge.tasks import task_scope

NOBODY: Final = "box-doctor"  # a service, instance and stream that do not exist

_PATIENCE: Final = 4.0  # seconds
_SETTLE: Final = 0.05  # seconds for the tasks to process the server's errors
_NOT_JSON: Final = b"box-bridge doctor"
_ELSEWHERE: Final = {"Nats-Expected-Stream": NOBODY}
_EXPIRED: Final = {EXPIRES_AT: "1970-01-01T00:00:01Z"}


class Right(Struct, frozen=True, kw_only=True):
    """A permission: the subjects to allow, in NATS syntax, and the message that tries it."""

    allow: str
    subject: str
    data: bytes = _NOT_JSON
    headers: Mapping[str, str] = field(default_factory=dict)


class Rights(Struct, frozen=True, kw_only=True):
    """The permissions that a Box, or a gateway, needs to publish and to subscribe."""

    publish: list[Right]
    subscribe: list[Right]


def of_box(settings: NatsConfig, host: str) -> Rights:
    """The permissions that the Box `host` needs."""
    subjects = settings.subjects
    buckets = _buckets(subjects)
    publish = [
        *(_inbox(inbox) for inbox in (*INBOXES, *settings.reply_prefixes)),
        _stored(subjects.all_events),
        *map(_stored, subjects.all_registrations),
        Right(allow=subjects.all_stats, subject=subjects.stats(host)),
        *(_stored(f"$KV.{bucket}.>", f"$KV.{bucket}.{NOBODY}") for bucket in buckets),
        *_api(subjects, ["STREAM.INFO.*", "STREAM.CREATE.*", "CONSUMER.CREATE.>"]),
        Right(
            allow="$JS.API.STREAM.MSG.GET.*",
            subject=f"$JS.API.STREAM.MSG.GET.KV_{subjects.hosts_bucket}",
        ),
        Right(allow="$JS.API.INFO", subject="$JS.API.INFO", data=b""),
        _flow_control(subjects),
    ]
    subscribe = [
        _own_inbox(settings),
        *map(_heard, _questions(subjects)),
        *map(_heard, (subjects.all_stats, subjects.all_health)),
        *(_heard(f"$SRV.*{rest}") for rest in ("", f".{subjects.prefix}")),
        Right(allow=f"$SRV.*.{subjects.prefix}.*", subject=f"$SRV.*.{subjects.prefix}.{host}"),
    ]
    return Rights(publish=publish, subscribe=subscribe)


def of_gateway(settings: NatsConfig) -> Rights:
    """The permissions that a gateway needs: to scale, to watch, and to route."""
    subjects = settings.subjects
    scale = encode(ScaleRequest(service=NOBODY, replicas=0))
    publish = [
        Right(allow=subjects.scale, subject=subjects.scale, data=scale, headers=_EXPIRED),
        Right(
            allow=subjects.instances,
            subject=subjects.instances,
            data=encode(InstancesRequest(service=NOBODY)),
        ),
        *_api(subjects, ["STREAM.INFO.*", "CONSUMER.CREATE.>"]),
        _flow_control(subjects),
    ]
    subscribe = [
        _own_inbox(settings),
        *map(_heard, (subjects.all_events, subjects.all_stats, subjects.all_health)),
    ]
    return Rights(publish=publish, subscribe=subscribe)


async def lacking(connection: Connection, rights: Rights) -> list[str]:
    """The permissions of `rights` that this connection's user lacks: ``publish box.events.*``, …

    Raises CutOff and NoReply if the server does not answer.
    """
    listeners = [await connection.listen(right.subject, _ignore) for right in rights.subscribe]
    try:
        async with task_scope() as tasks:
            attempts = [
                (right, tasks.create_task(_denied(connection, right))) for right in rights.publish
            ]
            # A denial arrives before the PONG of a later PING, which the second one is.
            await connection.flush(_PATIENCE)
            await connection.flush(_PATIENCE)
            await asyncio.wait([task for _, task in attempts], timeout=_SETTLE)
            publish = [right for right, task in attempts if task.done() and task.result()]
            subscribe = [
                right
                for right, listener in zip(rights.subscribe, listeners, strict=True)
                if listener.denied
            ]
    finally:
        for listener in listeners:
            await listener.close()
    lacks = [("publish", right) for right in publish]
    lacks += [("subscribe", right) for right in subscribe]
    return list(dict.fromkeys(f"{act} {right.allow}" for act, right in lacks))


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


def _ignore(message: Message) -> None:
    """Ignore a message: it is for other subscribers."""


def _in_domain(connection: Connection, subject: str) -> str:
    head, api, call = subject.partition("$JS.API.")
    return api_subject(connection, call) if api and not head else subject


def _heard(subject: str) -> Right:
    return Right(allow=subject, subject=subject)


def _stored(allow: str, subject: str = "") -> Right:
    return Right(allow=allow, subject=subject or allow.replace("*", NOBODY), headers=_ELSEWHERE)


def _inbox(prefix: str) -> Right:
    prefix = prefix.rstrip(".")
    return Right(allow=f"{prefix}.>", subject=f"{prefix}.{NOBODY}")


def _own_inbox(settings: NatsConfig) -> Right:
    return _inbox(settings.inbox_prefix)


def _api(subjects: Subjects, calls: Iterable[str]) -> list[Right]:
    """JetStream calls on each of the fleet's streams."""
    streams = [subjects.events_stream, subjects.registry_stream]
    streams += [f"KV_{bucket}" for bucket in _buckets(subjects)]
    return [
        Right(
            allow=f"$JS.API.{call}",
            subject=f"$JS.API.{call}".replace("*", stream).replace(">", f"{stream}.{NOBODY}"),
            data=b"" if call.startswith("STREAM.INFO") else _NOT_JSON,
        )
        for call in calls
        for stream in streams
    ]


def _flow_control(subjects: Subjects) -> Right:
    return Right(allow="$JS.FC.>", subject=f"$JS.FC.{subjects.events_stream}.{NOBODY}")


def _buckets(subjects: Subjects) -> tuple[str, ...]:
    return (
        subjects.services_bucket,
        subjects.slots_bucket,
        subjects.hosts_bucket,
        subjects.admin_bucket,
    )


def _questions(subjects: Subjects) -> tuple[str, ...]:
    return (
        subjects.scale,
        subjects.instances,
        subjects.hosts,
        subjects.services,
        subjects.admin,
        subjects.history,
        subjects.plan,
    )
