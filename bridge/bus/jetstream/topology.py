"""The streams and buckets of a fleet, as data, and their creation.

`ensure` creates missing streams and changes no existing one: every Box runs it at start and after
each reconnect (a memory stream is lost with its server). A stream whose settings would break a
promise is refused with the difference. Settings that break no promise (a longer max_age, a
description, a placement) are left to the operator. Tighter limits break none where the stream
refuses what is too much (`discard: new`): the Box waits, and `tightened` names the limits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import nats.errors
import nats.js.errors
from msgspec import Struct
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig, StreamInfo

from bridge.bus.core.connection import Connection
from bridge.bus.jetstream.api import jetstream, jetstream_errors
from bridge.errors import BusError, ServerTooOld, StoreRefused, StoreUnsuitable, TopologyMismatch
from bridge.settings import EVENTS_MAX_BYTES, Timing
from bridge.subjects import Subjects

DAY: Final = 24 * 3600.0

_REGISTRY_MAX_BYTES: Final = 256 * 2**20  # 500 bytes for each of 500,000 registrations
_SCARCE: Final = 64  # what a bucket and the registry get where there is little room: 1/64
_MIN_MAX_BYTES: Final = 256 * 2**10  # less holds no fleet

_MIN_API_LEVEL: Final = 1  # nats-server 2.11: per-message TTLs
_ATOMIC_API_LEVEL: Final = 2  # nats-server 2.12: atomic batches
_NAME_IN_USE: Final = 10058
_NO_ROOM: Final = (10002, 10023, 10028, 10047, 10122)  # of the server, or of the account
_OVERLAP: Final = 10065
_NO_JETSTREAM: Final = (10039, 10076)  # not enabled for the account; not enabled at all

_UNLIMITED: Final = ("max_age", "max_msgs", "max_bytes", "max_msg_size", "max_consumers")

Check = Callable[[Any, Any], bool]


def _same(wanted: Any, found: Any) -> bool:
    return bool(wanted == found)


def _at_least(wanted: Any, found: Any) -> bool:
    """Whether a limit is no lower: 0, -1 and None mean unlimited."""
    return not found or found < 0 or (bool(wanted) and wanted > 0 and found >= wanted)


_LIMITS: Final[dict[str, Check]] = {
    "max_msgs": _at_least,
    "max_bytes": _at_least,
    "max_msg_size": _at_least,
    "max_consumers": _at_least,
}
"""The limits that may be tighter than wanted, and whether the limit found is."""

_EVENT_LIMITS: Final[dict[str, Check]] = {
    **_LIMITS,
    "max_age": _at_least,
    "duplicate_window": lambda wanted, found: (found or 0) >= wanted,
}
"""The same for events: a reader is told what it has missed, and a publisher looks up what it may
have stored before.
"""

_PROMISES: Final[dict[str, Check]] = {
    "subjects": lambda wanted, found: sorted(wanted) == sorted(found or ()),
    "retention": _same,
    "storage": lambda wanted, found: found == wanted or found == StorageType.FILE,
    "discard": _same,
    "max_age": _at_least,
    "max_msgs_per_subject": _same,
    "num_replicas": lambda wanted, found: (found or 1) >= wanted,
    "duplicate_window": lambda wanted, found: (found or 0) >= wanted,
    "allow_msg_ttl": lambda wanted, found: not wanted or bool(found),
    "allow_direct": lambda wanted, found: not wanted or bool(found),
    "allow_rollup_hdrs": lambda _, found: not found,
    "deny_delete": lambda wanted, found: not wanted or bool(found),
    "deny_purge": lambda wanted, found: not wanted or bool(found),
    "discard_new_per_subject": lambda _, found: not found,  # refuses the second write of a key
    "no_ack": lambda _, found: not found,
    "persist_mode": lambda _, found: found in (None, "", "default"),  # async acks before the disk
    "allow_msg_counter": lambda _, found: not found,
    "subject_transform": lambda _, found: found is None,
    "mirror": lambda _, found: found is None,
    "sealed": lambda _, found: not found,
}
"""The settings that carry a promise, and whether the value found keeps it."""

_REGISTRY_LIMITS: Final[dict[str, Check]] = {**_LIMITS, "max_age": _at_least}
"""The same for registrations, unless they would expire before their time to live ends."""


class Lifetimes(Struct, frozen=True, kw_only=True):
    """How long records are kept, in seconds. A host without a renewal for `lease` is gone."""

    events: float = 7 * DAY
    duplicates: float = DAY
    registry: float = 600.0
    registration: float = 30.0
    lease: float = 10.0

    @classmethod
    def of(cls, timing: Timing) -> Lifetimes:
        """The defaults, with the leases of the fleet."""
        return cls(lease=float(timing.lease), registration=float(timing.registration_ttl))


def streams(
    subjects: Subjects,
    *,
    events_max_bytes: int = EVENTS_MAX_BYTES,
    replicas: int = 1,
    lifetimes: Lifetimes | None = None,
    atomic: bool = True,
) -> list[StreamConfig]:
    """The streams that must exist. `atomic` enables atomic batches, if the server has them.

    Each stream is bounded, and the server reserves its size: no stream takes the room of another.
    """
    times = lifetimes or Lifetimes()
    events = StreamConfig(
        name=subjects.events_stream,
        description="box-bridge: the events of instances",
        subjects=[subjects.all_events],
        storage=StorageType.FILE,
        max_age=times.events,
        max_msg_size=64 * 1024,
        max_msgs_per_subject=-1,
        max_bytes=events_max_bytes,
        duplicate_window=min(times.duplicates, times.events),
        allow_atomic=atomic or None,
        **_common(replicas),
    )
    registry = StreamConfig(
        name=subjects.registry_stream,
        description="box-bridge: the registrations of instances, which expire unless renewed",
        subjects=list(subjects.all_registrations),
        storage=StorageType.MEMORY,
        max_age=times.registry,
        max_bytes=_REGISTRY_MAX_BYTES,
        max_msg_size=64 * 1024,
        max_msgs_per_subject=1,
        allow_msg_ttl=True,
        **_common(replicas),
    )
    return [events, registry, *_buckets(subjects, replicas, times)]


def _buckets(subjects: Subjects, replicas: int, times: Lifetimes) -> Iterator[StreamConfig]:
    """The streams of the key-value buckets."""
    buckets = {
        # The history of a service is its log of decisions.
        subjects.services_bucket: (64, 0.0, 256, "the desired state of services, and decisions"),
        subjects.slots_bucket: (1, 0.0, 256, "the claims of hosts on the slots of services"),
        subjects.hosts_bucket: (1, times.lease, 64, "the leases of hosts, and what they can run"),
        subjects.admin_bucket: (1, 0.0, 16, "the orders of operators for hosts"),
    }
    for bucket, (history, age, mebibytes, purpose) in buckets.items():
        yield StreamConfig(
            name=f"KV_{bucket}",
            description=f"box-bridge: {purpose}",
            subjects=[f"$KV.{bucket}.>"],
            storage=StorageType.FILE,
            max_age=age,
            max_bytes=mebibytes * 2**20,
            max_msg_size=1024 * 1024,
            max_msgs_per_subject=history,
            **_common(replicas),
        )


def _common(replicas: int) -> dict[str, Any]:
    """The settings that all streams share."""
    return {
        "retention": RetentionPolicy.LIMITS,
        "discard": DiscardPolicy.NEW,  # `old` would delete acknowledged messages
        "max_msgs": -1,
        "num_replicas": replicas,
        "allow_direct": True,
        "allow_rollup_hdrs": False,  # a roll-up lets a writer of one subject wipe the stream
        "deny_delete": True,
        "deny_purge": True,
    }


def differences(
    wanted: StreamConfig, found: StreamConfig, lifetimes: Lifetimes | None = None
) -> list[str]:
    """One line for each promise of `wanted` that `found` breaks."""
    tolerated = _tolerated(wanted, found, lifetimes or Lifetimes())
    return [
        f"{setting} is {_shown(setting, have)}, and must be "
        f"{_shown(setting, want)}{_reason(setting, wanted)}"
        for setting, keeps in _PROMISES.items()
        if setting not in tolerated
        and not keeps(want := getattr(wanted, setting), have := getattr(found, setting))
    ]


def tightened(
    wanted: StreamConfig, found: StreamConfig, lifetimes: Lifetimes | None = None
) -> list[str]:
    """One line for each limit of `found` that is tighter than wanted, and breaks no promise."""
    return [
        f"{setting} is {_shown(setting, have)}, tighter than {_shown(setting, want)}"
        for setting, keeps in _tolerated(wanted, found, lifetimes or Lifetimes()).items()
        if not keeps(want := getattr(wanted, setting), have := getattr(found, setting))
    ]


def _tolerated(wanted: StreamConfig, found: StreamConfig, lifetimes: Lifetimes) -> dict[str, Check]:
    """The limits of `found` that may be tighter than wanted."""
    if _is_of_events(wanted):
        return _EVENT_LIMITS
    # A withdrawal must stay for as long as the last renewal of the registration that it ends.
    if wanted.allow_msg_ttl and _at_least(lifetimes.registration, found.max_age):
        return _REGISTRY_LIMITS
    return _LIMITS


def _reason(setting: str, wanted: StreamConfig) -> str:
    """Why a shorter `max_age` breaks a promise; "" for other settings."""
    if setting != "max_age":
        return ""
    if wanted.allow_msg_ttl:
        return " or at least registration_ttl: withdrawals must outlast registrations"
    if wanted.max_age:
        return " or more: the leases of hosts would end early"
    return ": the records of the fleet must not expire"


def _is_of_events(config: StreamConfig) -> bool:
    return bool(config.duplicate_window)


async def ensure(
    connection: Connection,
    *,
    replicas: int = 1,
    lifetimes: Lifetimes | None = None,
    events_max_bytes: int = EVENTS_MAX_BYTES,
    on_finding: Callable[[str], None] = lambda finding: None,
) -> list[str]:
    """Create the streams and buckets that are missing; returns their names. `on_finding` gets a
    sentence about each stream whose limits are tighter than wanted.

    Raises StoreUnsuitable (no JetStream, not permitted), ServerTooOld, TopologyMismatch, and
    BusError for an outage. Many processes may run it at once and repeatedly.
    """
    level = await api_level(connection)
    wanted = streams(
        connection.subjects,
        replicas=replicas,
        lifetimes=lifetimes,
        atomic=level >= _ATOMIC_API_LEVEL,
        events_max_bytes=events_max_bytes,
    )
    # Events last: where storage is scarce, they get what the fleet's records leave.
    created = {
        str(config.name)
        for config in sorted(wanted, key=_is_of_events)
        if await ensure_stream(connection, config, on_finding, lifetimes)
    }
    return [str(config.name) for config in wanted if config.name in created]


async def remove(connection: Connection) -> None:
    """Delete the streams and buckets of this connection's fleet with everything in them: for a
    temporary fleet. Raises BusError.
    """
    for config in streams(connection.subjects):
        await delete_stream(connection, str(config.name))


async def delete_stream(connection: Connection, name: str) -> None:
    """Delete a stream with everything in it, if it exists. Raises BusError."""
    with jetstream_errors(name), contextlib.suppress(nats.js.errors.NotFoundError):
        await jetstream(connection).delete_stream(name)


async def api_level(connection: Connection) -> int:
    """JetStream's API level; raises StoreUnsuitable if it is off, ServerTooOld if it is too old.

    Not every server reports it when a client connects: nats-server 2.11 does not, and a leaf node
    without JetStream cannot. Then the account's information has it.
    """
    info = connection.server_info
    level = info.get("api_lvl") if info.get("jetstream") else None
    level = int(level or await _account_level(connection))
    if level < _MIN_API_LEVEL:
        version = info.get("version", "?")
        raise ServerTooOld(str(version), "2.11")
    return level


def has_atomic_batches(connection: Connection) -> bool:
    """Whether the server knows atomic batches; an older one stores their messages singly."""
    return int(connection.server_info.get("api_lvl") or 0) >= _ATOMIC_API_LEVEL


async def _account_level(connection: Connection) -> int:
    with jetstream_errors("JetStream", denied="JetStream's API level cannot be read"):
        try:
            return (await jetstream(connection).account_info()).api.level or 0
        except (nats.errors.NoRespondersError, nats.js.errors.ServiceUnavailableError) as exc:
            if domain := connection.settings.domain:  # behind a leaf node: it may come back
                raise BusError(f"JetStream's domain {domain} does not answer") from exc
            raise StoreUnsuitable(
                "this NATS server has no JetStream: start it with `-js`, or let its cluster have it"
            ) from exc
        except nats.js.errors.APIError as exc:
            _check_enabled(exc)
            raise


def _check_enabled(exc: nats.js.errors.APIError) -> None:
    """Raises StoreUnsuitable if `exc` means that JetStream is off."""
    if exc.err_code in _NO_JETSTREAM:
        raise StoreUnsuitable(f"JetStream is off for this account: {exc.description}") from exc


async def ensure_stream(
    connection: Connection,
    config: StreamConfig,
    on_finding: Callable[[str], None] = lambda finding: None,
    lifetimes: Lifetimes | None = None,
) -> bool:
    """Create the stream if it is missing; returns whether it was. Raises as `ensure` does."""
    name = str(config.name)
    found = await stream_info(connection, name)
    if found is None:
        found = await _create(connection, config)
        if found is not None:
            if limits := tightened(config, found.config, lifetimes):
                on_finding(f"{name}: {'; '.join(limits)}")
            return True
        found = await _call(connection, name, "info")  # another Box created it meanwhile
    if found is None:
        raise BusError(f"stream {name} does not exist and cannot be created")
    if broken := differences(config, found.config, lifetimes):
        raise TopologyMismatch(name, broken)
    if limits := tightened(config, found.config, lifetimes):
        on_finding(f"{name}: {'; '.join(limits)}")
    return False


async def _create(connection: Connection, config: StreamConfig) -> StreamInfo | None:
    """The new stream's info; None if it exists already. Raises as `ensure` does.

    The server reserves max_bytes. Where it has less, or the account demands a bound for every
    stream, the stream gets a bound that fits and leaves room for others.
    """
    while True:
        try:
            return await _call(connection, str(config.name), "create", config)
        except StoreRefused as exc:
            bound = _other_bound(config, exc.code)
            if bound is None:
                raise
            config = config.evolve(max_bytes=bound)


def _other_bound(config: StreamConfig, code: int) -> int | None:
    """The max_bytes to try after a refusal with `code`; None if none can help. Events take what the
    others leave; those share little room evenly.
    """
    bound = config.max_bytes or 0
    scarce = bound // _SCARCE
    smaller = bound // 4 if _is_of_events(config) or scarce < _MIN_MAX_BYTES else scarce
    return smaller if code in _NO_ROOM and smaller >= _MIN_MAX_BYTES else None


async def stream_info(connection: Connection, name: str) -> StreamInfo | None:
    """The stream's info; None if it is missing. Raises as `ensure` does."""
    return await _call(connection, name, "info")


async def _call(
    connection: Connection, name: str, verb: str, config: StreamConfig | None = None
) -> StreamInfo | None:
    """The stream's info; None if it is missing (info) or exists already (create)."""
    js = jetstream(connection)
    with jetstream_errors(name, denied=f"stream {name} cannot be inspected or created"):
        try:
            return await (js.stream_info(name) if config is None else js.add_stream(config))
        except nats.js.errors.APIError as exc:
            if exc.err_code == _NAME_IN_USE or (verb == "info" and exc.code == 404):
                return None
            _check_enabled(exc)
            if exc.err_code == _OVERLAP:
                listed = ", ".join((config.subjects if config else None) or ())
                raise TopologyMismatch(
                    name, [f"another stream already takes some of {listed}: {exc.description}"]
                ) from exc
            raise


def _shown(setting: str, value: Any) -> str:
    if setting in _UNLIMITED and (not value or value < 0):
        return "unlimited"
    if setting in ("max_age", "duplicate_window"):
        return f"{value or 0:g} s"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value)) or "none"
    return str(getattr(value, "value", value))
