"""Checks of the bus: the server, JetStream, the user's permissions, the streams and the clock.

Each returns a Finding, or raises a BusError if it cannot be done. No check creates, changes or
stores anything.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from nats.js.api import AccountInfo, StreamInfo

from bridge.auth.roles import ANY, API, NAMED, Role, grants
from bridge.bus.core.connection import Connection
from bridge.bus.diagnostics import permissions, server_storage
from bridge.bus.diagnostics.limits import BOX_CONSUMERS, FULL, GATEWAY_CONSUMERS
from bridge.bus.jetstream import api, topology
from bridge.bus.jetstream.server_time import server_time
from bridge.diagnostics import Finding, fail, ok, skip, warn
from bridge.errors import NoReply
from bridge.settings import Timing

_OLDEST: Final = (2, 11)  # per-message TTLs
_BATCHES: Final = (2, 12)  # atomic batches: more than ten times the events a second
_FAR: Final = 0.1  # seconds of a round trip; each claim and decision waits for it
_TRIPS: Final = 3  # round trips, of which the fastest counts: the others measure this machine
_SKEW: Final = 1.0  # seconds
_MAX_SKEW: Final = 5.0  # seconds; a request expires 10 s after its creation by default

_EXPIRES_SOON: Final = timedelta(days=14)

_TAKE_AWAY: Final = (
    "`box-bridge auth init` makes users that have no more than they need; or add to the "
    "permissions of this NATS user"
)
_SETTING: Final = {
    "file storage": "max_file of the account, or of the server's jetstream block",
    "memory storage": "max_mem of the account, or of the server's jetstream block",
    "streams": "max_streams of the account",
    "consumers": (
        f"max_consumers of the account: a Box has {BOX_CONSUMERS} and a gateway {GATEWAY_CONSUMERS}"
    ),
}
"""The settings that raise each limit of an account."""

_GRANT: Final = (
    "docs/reference/permissions.md lists what is needed; add to the permissions of this NATS user"
)


async def server(connection: Connection) -> Finding:
    """The server's version and its distance."""
    info = connection.server_info
    version = str(info.get("version", "?"))
    away = min([await _round_trip(connection) for _ in range(_TRIPS)])
    where = ", ".join(connection.settings.urls)
    if context := connection.settings.context:
        where += f" (context {context})"
    message = f"nats-server {version} at {where}, {away * 1000:.1f} ms away"
    if _number(version) < _OLDEST:
        return fail(message, "update it: 2.11 or newer is needed")
    if soon := _expiring(connection):
        return warn(f"{message}; {soon}", "renew it: a client reads its files at each connection")
    if away > _FAR:
        return warn(message, "use a nearer server: each decision waits for it several times")
    if _number(version) < _BATCHES:
        return warn(message, "update it to 2.12 or newer, which stores events in batches")
    return ok(message)


def _expiring(connection: Connection) -> str:
    """The TLS certificates that expire soon, in words; "" if there are none."""
    now = datetime.now(UTC)
    return "; ".join(
        f"the certificate of the {whose} expires on {expiry:%Y-%m-%d %H:%M} UTC"
        for whose, expiry in connection.certificate_expiries().items()
        if expiry - now < _EXPIRES_SOON
    )


async def _round_trip(connection: Connection) -> float:
    """Seconds of one round trip to the server."""
    started = time.monotonic()
    await connection.flush()
    return time.monotonic() - started


async def jetstream(connection: Connection, role: Role = Role.BOX) -> Finding:
    """Whether JetStream is available, and how much of its limits the account has left."""
    await topology.api_level(connection)  # raises StoreUnsuitable
    info = await _account(connection)
    found = _limits(info)
    if none := [name for name, _, most in found if most == 0]:
        return fail(
            f"this account may use no {', no '.join(none)}",
            "raise its JetStream limits: events and records are kept in files, registrations in "
            "memory",
        )
    if role is Role.BOX and (lacking := await _lacking_streams(connection, found)):
        return fail(lacking, f"raise {_SETTING['streams']}")
    used = f"{info.streams} streams, {_mib(info.storage)} on disk, {_mib(info.memory)} in memory"
    near = [(name, f"{name} {has} of {most}") for name, has, most in found if has >= most * FULL]
    if near:
        listed = ", ".join(line for _, line in near)
        cures = ", ".join(dict.fromkeys(_SETTING[name] for name, _ in near))
        return warn(f"{used}; near a limit: {listed}", f"raise {cures}, or store less")
    if finding := await server_storage.shortage(connection):
        return finding
    demands = _demands(info)
    if demands:
        used += f"; the account demands {demands}"
    if demands and role is Role.BOX and await _missing_streams(connection):
        return warn(
            used,
            "a Box creates its buckets with 4 MiB or less each, enough for 5,000 instances; "
            "raise them with `nats stream edit KV_box_slots --max-bytes 64MiB`",
        )
    return ok(used if found or demands else f"{used}, no limits")


async def rights(connection: Connection, role: Role, name: str) -> Finding:
    """Whether the user has the permissions of the user `name` of `role`, and no others."""
    settings = connection.settings
    wanted = permissions.needed(settings, role, name)
    missing = await permissions.lacking(connection, wanted)
    who = _title(role, name)
    if missing:
        cure = f"{_GRANT}: {permissions.config_line(missing)}"
        return fail(f"as {who} this user may not {', '.join(missing)}", cure)
    tried = len(wanted.publish) + len(wanted.subscribe)
    message = f"all that {who} needs is allowed ({tried} subjects tried)"
    beyond = permissions.surplus(settings, role, name)
    surplus = await permissions.excess(connection, beyond)
    if len(surplus) == len(beyond.publish) + len(beyond.subscribe):
        how = "docs/how-to/set-up-authentication.md"
        return ok(f"{message}; this user may do everything: see {how}")
    if surplus:
        cure = f"{_TAKE_AWAY}: {permissions.config_line(surplus, deny=True)}"
        return warn(f"{message}, and beyond that this user may {', '.join(surplus)}", cure)
    return ok(f"{message}, and no more")


def _title(role: Role, name: str) -> str:
    """A user of `role` in words: ``Box box-a``, ``a gateway``, ``durable mailer``."""
    if role is Role.BOX:
        return f"Box {name}"
    if role in NAMED:
        return f"{role} {name}"
    return f"an {role}" if str(role).startswith("o") else f"a {role}"


async def streams(connection: Connection, timing: Timing | None, role: Role = Role.BOX) -> Finding:
    """Whether the existing streams and buckets have the settings that a fleet needs: those that
    `role` may inspect.
    """
    replicas = connection.settings.replicas
    lifetimes = None if timing is None else topology.Lifetimes.of(timing)
    inspected = grants(role, ANY, connection.subjects, inbox="").publish
    every = topology.streams(
        connection.subjects,
        replicas=replicas,
        lifetimes=lifetimes,
        events_max_bytes=connection.settings.events_max_bytes,
    )
    wanted = [config for config in every if f"{API}STREAM.INFO.{config.name}" in inspected]
    there: list[StreamInfo] = []
    broken, tight, missing = [], [], []
    for config in wanted:
        name = str(config.name)
        if (found := await topology.stream_info(connection, name)) is None:
            missing.append(name)
            continue
        there.append(found)
        pair = config, found.config, lifetimes
        broken += [f"{name}: {line}" for line in topology.differences(*pair)]
        tight += [f"{name}: {line}" for line in topology.tightened(*pair)]
    if broken:
        fix = "fix them with `nats stream edit NAME`, or choose another [nats] prefix"
        return fail("; ".join(broken), fix)
    if len(missing) == len(wanted):
        return _replicated(connection) or warn(
            f"none of the {len(wanted)} streams and buckets exists yet",
            "start a Box, which creates them; or check the prefix",
        )
    if missing:
        return warn(f"missing: {', '.join(missing)}", "a Box creates them when it starts")
    if lagging := _lagging(there):
        return warn(lagging, "check those servers: `nats server report jetstream`")
    if tight:
        return warn(
            "; ".join(tight),
            "nothing is lost: events wait while a stream is full, and are kept for a shorter time; "
            "raise the limit with `nats stream edit NAME`",
        )
    return _replicated(connection) or ok(
        f"{len(there)} streams and buckets, {_copies(replicas)}, all with the right settings"
    )


async def clock(connection: Connection, now: Callable[[], datetime]) -> Finding:
    """The difference of this host's clock to the server's, which stamps all stored messages."""
    started = now()
    before = time.monotonic()
    try:
        there = await server_time(connection)
    except NoReply:
        return skip("the server's time is unknown without a stream: start a Box")
    took = time.monotonic() - before
    off = (started + timedelta(seconds=took / 2) - there).total_seconds()
    side = "ahead of" if off > 0 else "behind"
    message = f"{abs(off):.3f} s {side} the NATS server's, give or take {took / 2:.3f} s"
    surely = max(0.0, abs(off) - took / 2)
    if surely > _MAX_SKEW:
        return fail(message, "set it with NTP (`timedatectl`): requests would count as expired")
    if surely > _SKEW:
        return warn(message, "set it with NTP (`timedatectl`)")
    return ok(message)


async def _account(connection: Connection) -> AccountInfo:
    with api.jetstream_errors("JetStream"):
        return await api.jetstream(connection).account_info()


async def _lacking_streams(connection: Connection, found: list[tuple[str, int, int]]) -> str:
    """How many streams more the account must allow, as a sentence; empty if it allows enough."""
    most = min((most - has for name, has, most in found if name == "streams"), default=None)
    if most is None:
        return ""
    missing = await _missing_streams(connection)
    if len(missing) <= most:
        return ""
    return f"this account may have {most} streams more, and {', '.join(missing)} are missing"


async def _missing_streams(connection: Connection) -> list[str]:
    names = [str(config.name) for config in topology.streams(connection.subjects)]
    return [name for name in names if await topology.stream_info(connection, name) is None]


def _demands(info: AccountInfo) -> str:
    """What the account demands of each stream; empty if nothing."""
    parts: list[Any] = [*info.tiers.values()] if info.tiers else [info]
    limits = [part.limits for part in parts]
    lines = ["max_bytes of each stream"] if any(it.max_bytes_required for it in limits) else []
    for kind in ("storage", "memory"):
        most = max(getattr(it, f"{kind}_max_stream_bytes") or -1 for it in limits)
        if most > 0:
            lines.append(f"at most {_mib(most)} a stream ({'file' if kind == 'storage' else kind})")
    return " and ".join(lines)


def _limits(info: AccountInfo) -> list[tuple[str, int, int]]:
    """Name, use and limit of each resource of the account; its limits are in the tiers, if any."""
    parts: list[Any] = [*info.tiers.values()] if info.tiers else [info]
    found = [
        limit
        for part in parts
        for limit in (
            ("file storage", part.storage, part.limits.max_storage),
            ("memory storage", part.memory, part.limits.max_memory),
            ("streams", part.streams, part.limits.max_streams or -1),
            ("consumers", part.consumers, part.limits.max_consumers or -1),
        )
    ]
    return [limit for limit in found if limit[2] >= 0]  # -1 is no limit


def _replicated(connection: Connection) -> Finding | None:
    """The problem with the number of replicas; None if there is none."""
    replicas, info = connection.settings.replicas, connection.server_info
    servers = len(set(info.get("connect_urls") or ())) or 1
    if replicas > 1 and not info.get("cluster"):
        return fail(
            f"replicas = {replicas}, but this server is not in a cluster",
            "set [nats] replicas = 1, or connect to a cluster",
        )
    if replicas > servers:
        return warn(
            f"replicas = {replicas}, but the cluster reports {servers} servers",
            "add servers to it, or lower [nats] replicas",
        )
    if replicas == 1 and info.get("cluster") and servers >= 3:
        return warn(
            f"one copy of each stream in a cluster of {servers} servers",
            "set [nats] replicas = 3, and run `nats stream edit NAME --replicas 3` for each stream",
        )
    return None


def _lagging(found: list[StreamInfo]) -> str:
    """The servers that lag behind, and with which streams; empty if there are none."""
    behind: dict[str, list[str]] = {}
    for info in found:
        peers: list[Any] = (info.cluster.replicas if info.cluster else None) or []
        for peer in peers:
            # A server that was killed is not reported offline for minutes, but not current.
            if peer.offline or not peer.current:
                behind.setdefault(str(peer.name), []).append(str(info.config.name))
    return "; ".join(
        f"server {name} is offline, or behind with {', '.join(streams)}"
        for name, streams in behind.items()
    )


def _copies(replicas: int) -> str:
    return "one copy of each" if replicas == 1 else f"{replicas} copies of each"


def _number(version: str) -> tuple[int, ...]:
    parts: list[int] = []
    for part in version.split("-", maxsplit=1)[0].split(".")[:2]:
        with contextlib.suppress(ValueError):
            parts.append(int(part))
    return tuple(parts)


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
