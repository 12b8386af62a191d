"""The streams and buckets of a fleet, as data, and how they come to exist.

`ensure` creates what is missing and changes nothing that is there: every Box runs it at start
and after each reconnect (a memory stream is gone with its server). A stream that exists with
settings that would break a promise is refused with the difference; settings that break none (a
longer max_age, a description, a placement) are the operator's business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import nats.errors
import nats.js.errors
from msgspec import Struct
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig, StreamInfo

from bridge.bus.core.connection import Connection
from bridge.bus.jetstream.api import jetstream
from bridge.bus.jetstream.publish import mapped
from bridge.errors import BusError, NotPermitted, StoreUnsuitable, TopologyMismatch
from bridge.settings import Timing
from bridge.subjects import Subjects

DAY: Final = 24 * 3600.0

_MIN_API_LEVEL: Final = 1  # nats-server 2.11: per-message TTLs
_ATOMIC_API_LEVEL: Final = 2  # nats-server 2.12: atomic batches
_NAME_IN_USE: Final = 10058
_OVERLAP: Final = 10065
_NO_JETSTREAM: Final = (10039, 10076)  # not enabled for the account; not enabled at all

Check = Callable[[Any, Any], bool]


def _same(wanted: Any, found: Any) -> bool:
    return bool(wanted == found)


def _at_least(wanted: Any, found: Any) -> bool:
    """A limit: 0, -1 and None stand for none at all."""
    return not found or found < 0 or (bool(wanted) and wanted > 0 and found >= wanted)


_PROMISES: Final[dict[str, Check]] = {
    "subjects": lambda wanted, found: sorted(wanted) == sorted(found or ()),
    "retention": _same,
    "storage": lambda wanted, found: found == wanted or found == StorageType.FILE,
    "discard": _same,
    "max_age": _at_least,
    "max_msgs": _at_least,
    "max_bytes": _at_least,
    "max_msg_size": _at_least,
    "max_msgs_per_subject": _same,
    "num_replicas": lambda wanted, found: (found or 1) >= wanted,
    "duplicate_window": lambda wanted, found: (found or 0) >= wanted,
    "allow_msg_ttl": lambda wanted, found: not wanted or bool(found),
    "allow_direct": lambda wanted, found: not wanted or bool(found),
    "allow_rollup_hdrs": lambda _, found: not found,
    "deny_delete": lambda wanted, found: not wanted or bool(found),
    "deny_purge": lambda wanted, found: not wanted or bool(found),
    "mirror": lambda _, found: found is None,
    "sealed": lambda _, found: not found,
}
"""Which settings carry a promise, and when what is found keeps it."""


class Lifetimes(Struct, frozen=True, kw_only=True):
    """How long things are kept, in seconds. `lease` also is the age at which a host is gone."""

    events: float = 7 * DAY
    duplicates: float = DAY
    registry: float = 600.0
    lease: float = 10.0

    @classmethod
    def of(cls, timing: Timing) -> Lifetimes:
        """The defaults, with the fleet's own lease."""
        return cls(lease=float(timing.lease))


def streams(
    subjects: Subjects,
    *,
    replicas: int = 1,
    lifetimes: Lifetimes | None = None,
    atomic: bool = True,
) -> list[StreamConfig]:
    """What must exist. `atomic` asks for atomic batches, where the server has them."""
    times = lifetimes or Lifetimes()
    common: dict[str, Any] = {
        "retention": RetentionPolicy.LIMITS,
        "discard": DiscardPolicy.NEW,  # `old` would evict what was acknowledged
        "max_msgs": -1,
        "max_bytes": -1,
        "num_replicas": replicas,
        "allow_direct": True,
        "allow_rollup_hdrs": False,  # a roll-up lets a writer of one subject wipe the stream
        "deny_delete": True,
        "deny_purge": True,
    }
    events = StreamConfig(
        name=subjects.events_stream,
        subjects=[subjects.all_events],
        storage=StorageType.FILE,
        max_age=times.events,
        max_msg_size=64 * 1024,
        max_msgs_per_subject=-1,
        duplicate_window=min(times.duplicates, times.events),
        allow_atomic=atomic or None,
        **common,
    )
    registry = StreamConfig(
        name=subjects.registry_stream,
        subjects=list(subjects.all_registrations),
        storage=StorageType.MEMORY,
        max_age=times.registry,
        max_msg_size=64 * 1024,
        max_msgs_per_subject=1,
        allow_msg_ttl=True,
        **common,
    )
    buckets = {
        subjects.services_bucket: (64, 0.0),  # the history is the decision log
        subjects.slots_bucket: (1, 0.0),
        subjects.hosts_bucket: (1, times.lease),
        subjects.admin_bucket: (1, 0.0),
    }
    return [
        events,
        registry,
        *(
            StreamConfig(
                name=f"KV_{bucket}",
                subjects=[f"$KV.{bucket}.>"],
                storage=StorageType.FILE,
                max_age=age,
                max_msg_size=1024 * 1024,
                max_msgs_per_subject=history,
                **common,
            )
            for bucket, (history, age) in buckets.items()
        ),
    ]


def differences(wanted: StreamConfig, found: StreamConfig) -> list[str]:
    """One line for each promise that `found` breaks; empty if it keeps all of `wanted`'s."""
    return [
        f"{setting} is {_shown(have)}, and must be {_shown(want)}"
        for setting, keeps in _PROMISES.items()
        if not keeps(want := getattr(wanted, setting), have := getattr(found, setting))
    ]


async def ensure(
    connection: Connection, *, replicas: int = 1, lifetimes: Lifetimes | None = None
) -> list[str]:
    """Create the streams and buckets that are missing; returns their names.

    Raises StoreUnsuitable (no JetStream, too old, not permitted), TopologyMismatch, and BusError
    for an outage. Safe to run by many at once, and again.
    """
    level = await api_level(connection)
    wanted = streams(
        connection.subjects,
        replicas=replicas,
        lifetimes=lifetimes,
        atomic=level >= _ATOMIC_API_LEVEL,
    )
    return [str(config.name) for config in wanted if await ensure_stream(connection, config)]


async def remove(connection: Connection) -> None:
    """Delete the streams and buckets of this connection's fleet, and all that they hold: the end
    of a fleet that was made to be thrown away. Raises BusError.
    """
    js = jetstream(connection)
    for config in streams(connection.subjects):
        name = str(config.name)
        try:
            await js.delete_stream(name)
        except nats.js.errors.NotFoundError:
            continue
        except (nats.errors.Error, TimeoutError) as exc:
            raise mapped(name, exc) from exc


async def api_level(connection: Connection) -> int:
    """JetStream's API level; raises StoreUnsuitable if it is off or too old.

    The server that one is connected to need not tell: nats-server 2.11 does not, and that of a
    leaf node has no JetStream itself. Then the account is asked.
    """
    info = connection.server_info
    told = info.get("api_lvl") if info.get("jetstream") else None
    level = int(told or await _account_level(connection))
    if level < _MIN_API_LEVEL:
        version = info.get("version", "?")
        raise StoreUnsuitable(f"nats-server {version} is too old: 2.11 or newer is needed")
    return level


def has_atomic_batches(connection: Connection) -> bool:
    """Whether the server takes atomic batches; an older one would store them one by one."""
    return int(connection.server_info.get("api_lvl") or 0) >= _ATOMIC_API_LEVEL


async def _account_level(connection: Connection) -> int:
    try:
        return (await jetstream(connection).account_info()).api.level or 0
    except (nats.errors.NoRespondersError, nats.js.errors.ServiceUnavailableError) as exc:
        if domain := connection.settings.domain:  # behind a leaf node: it may come back
            raise BusError(f"JetStream's domain {domain} does not answer") from exc
        raise StoreUnsuitable(
            "this NATS server has no JetStream: start it with `-js`, or let its cluster have it"
        ) from exc
    except nats.js.errors.APIError as exc:
        if exc.err_code in _NO_JETSTREAM:
            raise StoreUnsuitable(f"JetStream is off for this account: {exc.description}") from exc
        raise mapped("JetStream", exc) from exc
    except NotPermitted as exc:
        raise StoreUnsuitable(f"JetStream cannot be asked what it can do: {exc}") from exc
    except (nats.errors.Error, TimeoutError) as exc:
        raise mapped("JetStream", exc) from exc


async def ensure_stream(connection: Connection, config: StreamConfig) -> bool:
    """Create the stream if it is missing; whether it was. Raises what `ensure` does."""
    name = str(config.name)
    found = await stream_info(connection, name)
    if found is None:
        found = await _call(connection, name, "create", config)
        if found is not None:
            return True
        found = await _call(connection, name, "info")  # another Box was faster
    if found is None:
        raise BusError(f"stream {name} is neither there nor can it be created")
    if broken := differences(config, found.config):
        raise TopologyMismatch(name, broken)
    return False


async def stream_info(connection: Connection, name: str) -> StreamInfo | None:
    """The stream as it is; None if it is missing. Raises what `ensure` does."""
    return await _call(connection, name, "info")


async def _call(
    connection: Connection, name: str, verb: str, config: StreamConfig | None = None
) -> StreamInfo | None:
    """The stream's info; None where it is missing (info) or there already (create)."""
    js = jetstream(connection)
    try:
        return await (js.stream_info(name) if config is None else js.add_stream(config))
    except nats.js.errors.APIError as exc:
        if exc.err_code == _NAME_IN_USE or (verb == "info" and exc.code == 404):
            return None
        if exc.err_code in _NO_JETSTREAM:
            raise StoreUnsuitable(f"JetStream is off for this account: {exc.description}") from exc
        if exc.err_code == _OVERLAP:
            listed = ", ".join((config.subjects if config else None) or ())
            raise TopologyMismatch(
                name, [f"another stream already takes some of {listed}: {exc.description}"]
            ) from exc
        raise mapped(name, exc) from exc
    except NotPermitted as exc:
        raise StoreUnsuitable(f"stream {name} cannot be seen to: {exc}") from exc
    except (nats.errors.Error, TimeoutError) as exc:
        raise mapped(name, exc) from exc


def _shown(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value)) or "none"
    return str(getattr(value, "value", value))
