"""The roles of NATS users, and the subjects that each role may publish and subscribe. Pure.

This is the only table of permissions. The server configuration of `box-bridge auth`, the checks of
`box-bridge doctor`, the reference page and the tests are made from it.

A permission is a subject in NATS syntax. A JetStream call is written `$JS.API.…`; users outside the
account of the streams send it to the domain of that account instead.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from bridge.subjects import INBOXES, Subjects, check_name

ANY: Final = "*"
"""As a name: the subjects of every user of the role."""

API: Final = "$JS.API."
DISCOVERY: Final = ("$SRV.PING", "$SRV.INFO", "$SRV.STATS")
"""The requests of `nats micro`."""


class Role(enum.StrEnum):
    """What a NATS user is for."""

    BOX = "box"
    RUNNER = "runner"
    GATEWAY = "gateway"
    CONSUMER = "consumer"
    DURABLE = "durable"
    RELAY = "relay"
    OPERATOR = "operator"
    INSTANCE = "instance"
    LEAF = "leaf"


MEANINGS: Final = {
    Role.BOX: "is a host that runs instances and decides; its name is the host's",
    Role.RUNNER: 'is a host with `role = "runner"`, which decides nothing; its name is the host\'s',
    Role.GATEWAY: "scales services, watches them and routes to them",
    Role.CONSUMER: "reads events, stored and live",
    Role.DURABLE: "reads events under a durable name, which is the user's",
    Role.RELAY: "sends events to HTTP under a durable name, which is the user's",
    Role.OPERATOR: "gives each order, reads each view of the command line and uses `nats micro`",
    Role.INSTANCE: "registers itself; its name is `SERVICE` or `SERVICE.INSTANCE-ID`",
    Role.LEAF: "is a leaf node, which passes on all messages of the hosts that connect to it",
}
"""What a user of each role does, for the reference."""

NAMED: Final = (Role.BOX, Role.RUNNER, Role.DURABLE, Role.RELAY, Role.INSTANCE)
"""The roles whose permissions depend on the name of the user."""


class Grants(Struct, frozen=True):
    """The subjects that a user may publish and subscribe, in NATS syntax. `deny` are those that it
    may not publish although `publish` matches them.
    """

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    deny: tuple[str, ...] = ()


def check_member(role: Role, name: str) -> None:
    """Raise NameRefused if no user of `role` can be called `name`."""
    service, dot, instance_id = name.partition(".")
    if role is Role.INSTANCE and dot:
        check_name("service", service)
        check_name("instance id", instance_id)
    else:
        check_name(role, name)


def grants(
    role: Role, name: str, subjects: Subjects, *, inbox: str, durables: Iterable[str] = ()
) -> Grants:
    """The permissions of the user `name` of `role`, which gets its replies under `inbox`.

    A reader of events creates consumers under any name. Those of `durables` are denied to it: a
    consumer is changed, and ended, by the call that creates it.
    """
    publish, subscribe = _ROLES[role](subjects, name)
    create = f"{API}CONSUMER.CREATE.{subjects.events_stream}."
    reads = any(subject.startswith(create) for subject in publish)
    return Grants(
        publish=tuple(dict.fromkeys(publish)),
        subscribe=(f"{inbox}.>", *dict.fromkeys(subscribe)),
        deny=tuple(
            f"{create}{durable}{rest}" for durable in durables if reads for rest in ("", ".>")
        ),
    )


def covers(pattern: str, subject: str) -> bool:
    """Whether every subject that `subject`, possibly a pattern, matches is matched by `pattern`."""
    wanted, given = pattern.split("."), subject.split(".")
    for position, part in enumerate(wanted):
        if part == ">":
            return len(given) > position
        if position >= len(given) or given[position] == ">":
            return False
        if part not in ("*", given[position]):
            return False
    return len(wanted) == len(given)


def allowed(patterns: Iterable[str], subject: str) -> bool:
    """Whether one of `patterns` covers `subject`."""
    return any(covers(pattern, subject) for pattern in patterns)


def buckets(subjects: Subjects) -> tuple[str, ...]:
    """The buckets of a fleet."""
    return (
        subjects.services_bucket,
        subjects.slots_bucket,
        subjects.hosts_bucket,
        subjects.admin_bucket,
    )


def streams(subjects: Subjects) -> tuple[str, ...]:
    """The streams that a Box needs, those of the buckets among them."""
    kept = (f"KV_{bucket}" for bucket in buckets(subjects))
    return (subjects.events_stream, subjects.registry_stream, *kept)


def requests(subjects: Subjects) -> tuple[str, ...]:
    """The subjects of the requests that Boxes answer."""
    return (
        subjects.scale,
        subjects.instances,
        subjects.hosts,
        subjects.services,
        subjects.admin,
        subjects.history,
        subjects.plan,
    )


# ── the roles ────────────────────────────────────────────────────────────────────────────

_Lists = tuple[list[str], list[str]]


def _runner(subjects: Subjects, host: str) -> _Lists:
    events, registry, *kept = streams(subjects)
    readable = (events, registry, *kept)
    services, slots, hosts, _ = buckets(subjects)
    publish = [
        subjects.all_events,
        *subjects.all_registrations,
        f"{subjects.prefix}.stats.{host}",
        f"$KV.{slots}.*.*",
        f"$KV.{hosts}.{host}",
        f"{API}INFO",
        *(f"{API}STREAM.INFO.{stream}" for stream in readable),
        *(f"{API}STREAM.MSG.GET.{stream}" for stream in (events, *kept)),
        *(f"{API}CONSUMER.CREATE.{stream}.*" for stream in kept),
        f"{API}CONSUMER.CREATE.KV_{services}.*.$KV.{services}.*",
        f"{API}CONSUMER.CREATE.{registry}.*.{subjects.all_registrations[1]}",
        f"{API}CONSUMER.CREATE.{events}.*.{subjects.all_events}",
        *(f"$JS.FC.{stream}.>" for stream in readable),
    ]
    return publish, [subjects.all_stats, subjects.all_health]


def _box(subjects: Subjects, host: str) -> _Lists:
    publish, subscribe = _runner(subjects, host)
    services, _, _, admin = buckets(subjects)
    publish += [
        *(f"{prefix}>" for prefix in INBOXES),
        f"$KV.{services}.*",
        f"$KV.{admin}.cordon.*",
        *(f"{API}STREAM.CREATE.{stream}" for stream in streams(subjects)),
    ]
    subscribe += [
        *requests(subjects),
        f"{subjects.prefix}.logs.{host}",
        *("$SRV.*", f"$SRV.*.{subjects.prefix}", f"$SRV.*.{subjects.prefix}.*"),
    ]
    return publish, subscribe


def _gateway(subjects: Subjects, name: str) -> _Lists:
    registry = subjects.registry_stream
    publish = [
        subjects.scale,
        subjects.instances,
        *_reader(subjects),
        f"{API}STREAM.INFO.{registry}",
        f"{API}CONSUMER.CREATE.{registry}.*",
        f"{API}CONSUMER.CREATE.{registry}.*.{subjects.prefix}.*.*.*",
        f"$JS.FC.{registry}.>",
    ]
    return publish, [subjects.all_events, subjects.all_stats, subjects.all_health]


def _consumer(subjects: Subjects, name: str) -> _Lists:
    return _reader(subjects), []


def _durable(subjects: Subjects, name: str) -> _Lists:
    events = subjects.events_stream
    publish = [
        f"{API}INFO",
        f"{API}STREAM.INFO.{events}",
        f"{API}CONSUMER.INFO.{events}.{name}",
        f"{API}CONSUMER.DURABLE.CREATE.{events}.{name}",
        f"{API}CONSUMER.DELETE.{events}.{name}",
        f"{API}CONSUMER.MSG.NEXT.{events}.{name}",
        f"$JS.ACK.{events}.{name}.>",
    ]
    return publish, []


def _relay(subjects: Subjects, name: str) -> _Lists:
    publish, subscribe = _durable(subjects, name)
    publish += [
        f"{API}STREAM.INFO.{subjects.dead_stream}",
        f"{API}STREAM.CREATE.{subjects.dead_stream}",
        f"{subjects.prefix}.dead.{name}",
    ]
    return publish, subscribe


def _operator(subjects: Subjects, name: str) -> _Lists:
    publish, subscribe = _gateway(subjects, name)
    prefix = subjects.prefix
    discovery = [
        f"{verb}{rest}" for verb in DISCOVERY for rest in ("", f".{prefix}", f".{prefix}.*")
    ]
    return [*requests(subjects), subjects.all_logs, *discovery, *publish], subscribe


def _instance(subjects: Subjects, name: str) -> _Lists:
    member = name if "." in name else f"{name}.*"
    verbs = ("register", "deregister", "health")
    publish = [f"{subjects.prefix}.{verb}.{member}" for verb in verbs]
    return publish, [f"{subjects.prefix}.deregister.{member}"]


def _reader(subjects: Subjects) -> list[str]:
    """What a reader of events without a durable name publishes."""
    events = subjects.events_stream
    return [
        f"{API}INFO",
        f"{API}STREAM.INFO.{events}",
        f"{API}CONSUMER.CREATE.{events}.*",
        f"{API}CONSUMER.CREATE.{events}.*.{subjects.all_events}",
        f"$JS.FC.{events}.>",
    ]


_ROLES: Final = {
    Role.BOX: _box,
    Role.RUNNER: _runner,
    Role.GATEWAY: _gateway,
    Role.CONSUMER: _consumer,
    Role.DURABLE: _durable,
    Role.RELAY: _relay,
    Role.OPERATOR: _operator,
    Role.INSTANCE: _instance,
}

PROGRAMS: Final = tuple(_ROLES)
"""The roles of programs. A leaf node is a server, and has no limits."""


FORBIDDEN: Final = (
    f"{API}STREAM.DELETE.*",
    f"{API}STREAM.PURGE.*",
    f"{API}STREAM.UPDATE.*",
    f"{API}STREAM.MSG.DELETE.*",
    f"{API}STREAM.SNAPSHOT.*",
    f"{API}STREAM.NAMES",
    f"{API}STREAM.LIST",
)
"""JetStream calls that no role may send."""


def everything(subjects: Subjects) -> Grants:
    """Each subject that some role may use, and some that no role may use."""
    publish, subscribe = [*FORBIDDEN], [">", "_INBOX.>", "$KV.>", "$JS.>"]
    for role in PROGRAMS:
        lists = _ROLES[role](subjects, ANY)
        publish += lists[0]
        subscribe += lists[1]
    return Grants(publish=tuple(dict.fromkeys(publish)), subscribe=tuple(dict.fromkeys(subscribe)))
